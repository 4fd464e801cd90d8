"""How the site is built: ``make docs``."""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from sphinx.ext.napoleon import GoogleDocstring

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "qx-cache-celery"
author = "the qx-cache-celery maintainers"
project_copyright = f"2026 {author}"
version = release = version_of(project)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "pages", "sequence"]
exclude_patterns = ["_ext", "_static"]
nitpicky = True
smartquotes = False  # options and commands in the text stay as they are typed

myst_enable_extensions = ["html_image"]
myst_heading_anchors = 3

autodoc_default_options = {"member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_use_rtype = False
napoleon_use_ivar = True

# No inventories are fetched: the build needs no network. Names of other projects are therefore shown, not linked.
nitpick_ignore_regex = [
    # of other projects, by their modules
    ("py:.*", r"(asyncio|collections|datetime|io|pathlib|subprocess|types|typing)\..*"),
    ("py:.*", r"(celery|kombu|pydantic|pydantic_settings|redis|sqlalchemy)\..*"),
    # Python's own, as annotations spell them
    ("py:.*", r"(Any|Awaitable|Callable|Iterator|Literal|None|Path|Popen|Self|TracebackType|timedelta)"),
    ("py:.*", r"(bool|bytes|dict|float|int|list|object|str|tuple|type)"),
    ("py:.*", r"(BaseException|Exception|RuntimeError|TimeoutError|TypeError|ValueError)"),
    # type variables, which nothing documents
    ("py:.*", r"qx_cache\.(cache|idempotency)\.T"),
]

html_theme = "furo"
html_title = "qx-cache-celery"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False


_kept: list[str] = []


def _before(app: Any, what: str, *about: Any) -> None:
    """Docstrings hold Markdown fences, as editors show them; autodoc reads reStructuredText."""
    name, thing, options, lines = about
    text, inside = [], ""
    for line in lines:
        if fence := re.match(r"( *)```(\w*)$", line):
            if not inside:
                text += [f"{fence[1]}.. code-block:: {fence[2] or 'text'}", ""]
            inside = "" if inside else "   "
            continue
        text.append(inside + line if line.strip() else line)
    lines[:] = text
    _kept.clear()
    if what in {"attribute", "data", "property"}:  # napoleon would take what stands before a colon for a type
        _kept.extend(GoogleDocstring(lines, app.config, app, "method", name, thing, options).lines())
        lines.clear()


def _after(*about: Any) -> None:
    """Give back what was kept from napoleon."""
    about[-1][:0] = _kept


def setup(app: Any) -> None:
    """Around napoleon, which takes sections apart."""
    app.connect("autodoc-process-docstring", _before, priority=100)
    app.connect("autodoc-process-docstring", _after, priority=900)
