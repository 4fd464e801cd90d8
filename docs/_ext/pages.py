"""Pages that take text from where it is written once: other files, and what ``made`` makes of code and results."""

import os
import re
from pathlib import Path
from typing import Any

import made

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HOME = {  # where on the site that is shown which lies outside of docs/
    "README.md#how-a-task-ends-and-what-the-record-says-then": "docs/reference/outcomes.md",
    "README.md#settings": "docs/reference/options.md",
    "README.md": "docs/index.md",
    "CHANGELOG.md": "docs/changelog.md",
    "examples/shop/README.md": "docs/shop.md",
    "benchmarks/README.md": "docs/measured.md",
    "benchmarks/results.md": "docs/measured.md",
    "tests/chaos/beats.md": "docs/beats-under-faults.md",
    "tests/chaos/matrix.md": "docs/matrix.md",
}
FILE = re.compile(r"<!-- file: (\S+?)(?: from \"(.*?)\")?(?: to \"(.*?)\")? -->\n")
_FORGE = re.compile(r"<!-- forge -->\n.*?<!-- site -->\n", re.DOTALL)  # for readers in the repository
_FENCED = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
_CODE_LINK = re.compile(r"\[([^\]`]+\.py)\]\([^)\s]+\.py\)")  # the site has no pages of source files
_LINK = re.compile(r"(\]\(|<img src=\")([^)\s\"]+)([)\"])")


def read_page(page: Path, text: str) -> str:
    """A page as the site has it: with its files, its made blocks, and links that stay on the site."""
    text = relinked(made.fresh(_FORGE.sub("", text)), page.parent, page.parent)
    return FILE.sub(
        lambda found: part(page, *(word and word.replace("\\n", "\n") for word in found.groups())), text
    )


def part(page: Path, name: str, begin: str | None, end: str | None) -> str:
    """What a page takes from a file: all of it, or what is between two of its texts."""
    text = (ROOT / name).read_text()
    if begin:
        text = text[text.index(begin) + len(begin) :]
    if end:
        text = text[: text.index(end)]
    return relinked(text, (ROOT / name).parent, page.parent).strip("\n") + "\n"


def relinked(text: str, written_in: Path, shown_in: Path) -> str:
    """Links of a text that is shown in another folder, and those to files that the site shows as pages."""

    def place(found: re.Match[str]) -> str:
        before, target, after = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        name, _, anchor = target.partition("#")
        path = os.path.relpath(written_in / name, ROOT)
        path, anchor = _shown(path, anchor)
        return f"{before}{os.path.relpath(ROOT / path, shown_in)}{'#' + anchor if anchor else ''}{after}"

    parts = _FENCED.split(text)
    return "".join(
        piece if number % 2 else _LINK.sub(place, _CODE_LINK.sub(r"`\1`", piece))
        for number, piece in enumerate(parts)
    )


def _shown(path: str, anchor: str) -> tuple[str, str]:
    if f"{path}#{anchor}" in HOME:
        return HOME[f"{path}#{anchor}"], ""
    return HOME.get(path, path), anchor


def _source_read(_app: Any, docname: str, source: list[str]) -> None:
    source[0] = read_page(DOCS / f"{docname}.md", source[0])


def _public(_app: Any, env: Any, node: Any, content: Any) -> Any:
    """Annotations spell ``qx_cache.outcomes.Claimed`` what is documented as ``qx_cache.Claimed``."""
    from docutils import nodes  # is there where the site is built; the tests read pages without it

    if node.get("refdomain") != "py":
        return None
    parts = node["reftarget"].split(".")
    domain = env.get_domain("py")
    tails = [".".join(parts[-many:]) for many in (1, 2)]
    for package in ("qx_cache", "qx_cache_celery", "qx_cache_celery.beat", "qx_cache_celery.inbox"):
        for tail in tails:
            if (entry := domain.objects.get(f"{package}.{tail}")) and entry.objtype != "module":
                uri = _app.builder.get_relative_uri(node["refdoc"], entry.docname)
                return nodes.reference("", "", content, internal=True, refuri=f"{uri}#{entry.node_id}")
    return None


def setup(app: Any) -> dict[str, bool]:
    """Hook into reading and resolving."""
    app.connect("source-read", _source_read)
    app.connect("missing-reference", _public)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
