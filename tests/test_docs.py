"""The pages keep to what is true: their code runs, their figures are the measured ones, their links lead on."""

import ast
import os
import re
import signal
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest
from celery import Celery, _state
from docs_world import AFTER, DOCS, IN_FOLDERS, PAGES, ROOT, World, blocks, name_of, script
from kombu.transport import redis as kombu_redis

from qx_cache import _records, codecs, keys
from qx_cache.embedded import start_server
from qx_cache_celery import options, runtime, transacted
from qx_cache_celery.demo.orders import SHIPPED, load
from qx_cache_celery.options import DEFAULTS

sys.path.insert(0, str(DOCS / "_ext"))
import made
import pages

NOT_RUN_AT_MOST = 8
MAKEFILE = (ROOT / "Makefile").read_text()
README = (ROOT / "README.md").read_text()
OF_OTHER_TESTS = ("benchmarks/README.md", "docs/beat.md")
"""The first says how it is measured; the second has figures of a run of its own."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PLAYED = [page for page in PAGES if name_of(page) not in IN_FOLDERS and blocks(page, "python")]


@pytest.fixture
def alone(monkeypatch):
    """The tasks of a page are not shared with the apps of later ones."""
    monkeypatch.setattr(_state, "_on_app_finalizers", set())


@pytest.mark.parametrize("page", PLAYED, ids=name_of)
async def test_the_code_of_a_page_runs_from_its_beginning_to_its_end(page, tmp_path, alone):
    with start_server() as server:
        world = World(server.url, server.broker_url, tmp_path)
        try:
            for block in blocks(page, "python"):
                if not block.not_run:
                    await world.play(block)
            AFTER.get(name_of(page), lambda _: None)(world)
        finally:
            await world.close()


def test_what_is_not_run_says_why_and_is_little():
    left_out = [block for page in PAGES for block in blocks(page, "python", "console") if block.not_run]
    assert len(left_out) <= NOT_RUN_AT_MOST
    assert all(len(block.not_run) > 20 for block in left_out)


@pytest.mark.worker
@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", IN_FOLDERS)
def test_a_page_is_followed_from_an_empty_folder_to_its_end(page, tmp_path):
    program, expected = script(ROOT / page)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("QX_", "PYTEST_", "COV_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    shell = subprocess.Popen(
        ["bash"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        told, _ = shell.communicate(program, timeout=200)
    finally:
        _end(shell)
    logs = "\n".join(path.read_text() for path in tmp_path.glob("*.log"))
    parts = re.split(r"^@@ (?:\d+|end)\n", told, flags=re.MULTILINE)[1:]
    assert len(expected) + 1 == len(parts), f"{told}\n{logs}"
    for (command, output), seen in zip(expected, parts, strict=False):
        assert not output or output == seen, f"{command}\n{logs}"


def _end(shell):
    with suppress(ProcessLookupError):
        os.killpg(shell.pid, signal.SIGKILL)
    shell.wait()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_is_made_of_code_and_results_is_that_of_today(page):
    text = page.read_text()
    assert made.fresh(text, made.SITE_ONLY) == text, "make figures writes it anew"


def test_the_readme_has_the_defaults_of_the_code():
    """Each row of its table of options, as far as a default is a word or a number."""
    rows = dict(re.findall(r"^\| `(\w+)`.*? \| (.+?) \| .*?\|$", README, re.MULTILINE))
    told = {
        name: re.split("[,:;]", default)[0] for name, default in rows.items() if DEFAULTS.get(name) is not None
    }
    for name, default in told.items():
        assert default == (f"{DEFAULTS[name]:g}" if isinstance(DEFAULTS[name], float) else str(DEFAULTS[name])), (
            name
        )
    assert told.keys() >= {"result_ttl", "lease_ttl", "lock_ttl", "max_interruptions", "claim_ttl"}


def reference():
    return "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))


@pytest.mark.parametrize(
    "package", ["qx_cache", "qx_cache_celery", "qx_cache_celery.beat", "qx_cache_celery.inbox"]
)
def test_each_public_name_has_its_place_in_the_reference(package):
    documented = set(re.findall(r"^\.\. auto\w+:: (\w+)", reference(), re.MULTILINE))
    elsewhere = {"TICK", "SingletonDatabaseScheduler"}  # a word and a name that needs an optional package
    assert set(import_module(package).__all__) - documented <= elsewhere


def test_each_setting_of_an_app_is_on_its_page():
    code = "\n".join(path.read_text() for path in (ROOT / "qx_cache_celery").rglob("*.py"))
    told = (DOCS / "reference" / "options.md").read_text()
    for name in set(re.findall(r"""conf\.get\("(qx_cache_\w+)""", code)):
        assert f"`{name}`" in told or name.removeprefix("qx_cache_") in DEFAULTS, name


def test_what_operating_names_is_what_the_code_tells():
    page = (DOCS / "operating.md").read_text()
    events = set(re.findall(r"^\| `(\w+)` \|", (DOCS / "reference" / "signals.md").read_text(), re.MULTILINE))
    alerts = page.partition("| alert on |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", alerts, re.MULTILINE)) <= events
    assert set(re.findall(r"`((?:task|lease|beat)_\w+)`", alerts)) <= events
    findings = page.partition("| finding |")[2].partition("\n\n")[0]
    code = (ROOT / "qx_cache" / "preflight.py").read_text()
    assert set(re.findall(r"^\| `(\w+)`", findings, re.MULTILINE)) == set(
        re.findall(r"""Finding\((?:"\w+"|"error" if limited else "warning"), "(\w+)\"""", code)
    )


def test_the_examples_in_docstrings_are_python():
    for path in [*(ROOT / "qx_cache").rglob("*.py"), *(ROOT / "qx_cache_celery").rglob("*.py")]:
        for example in re.findall(r"^ *```python\n(.*?)^ *```", path.read_text(), re.MULTILINE | re.DOTALL):
            compile(dedent(example), str(path), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)


UNITS = r"(?:%|(?:ms|µs|us|s|seconds|bytes|KiB|MiB|B|tasks|orders)\b)"
TASKS_OF_LOAD = int(
    re.search(r'"--tasks", type=int, default=(\d+)', (ROOT / "tests/chaos/load.py").read_text())[1]
)
ORDERS_OF_CHAOS = int(re.search(r'"CHAOS_ORDERS", "(\d+)"', (ROOT / "tests/stack/chaos.py").read_text())[1])
LEASE_OF_DEMO = int(
    re.search(r"LEASE_SECONDS = .*?(\d+)$", (ROOT / "qx_cache_celery/demo/app.py").read_text(), re.MULTILINE)[1]
)
CONSTANTS = {
    "2 s": (runtime._SOCKET_TIMEOUT_SECONDS, 2),
    "3 s": (LEASE_OF_DEMO, 3),
    "30 s": (DEFAULTS["lease_ttl"], DEFAULTS["lock_ttl"], 30),
    "5 s": (DEFAULTS["lock_timeout"], 5),
    "10 s": (options.beat_lock_ttl(Celery(set_as_current=False)), 10),
    "25 s": (kombu_redis.DEFAULT_HEALTH_CHECK_INTERVAL, 25),
    "1 KiB": (codecs.COMPRESS_FROM_BYTES, 1024),
    "1 MiB": (_records.MAX_RESULT_BYTES, transacted.MAX_RESULT_BYTES, 2**20),
    "200 bytes": (keys.LONGEST_NAME_BYTES, 200),
    "200 orders": (len(load(SHIPPED)), 200),
    "500 orders": (ORDERS_OF_CHAOS, 500),
    "1,000 tasks": (TASKS_OF_LOAD, 1000),
    "1,000 orders": (TASKS_OF_LOAD, 1000),
}
"""Times and sizes in the text, and the constants of the code that they repeat."""


@pytest.mark.parametrize("page", [page for page in PAGES if name_of(page) not in OF_OTHER_TESTS], ids=name_of)
def test_a_figure_in_the_text_is_a_constant_of_the_code(page):
    """Measured figures stand in made blocks only; what else has a unit repeats a constant."""
    text = re.sub(
        r"<!-- made: .*?<!-- end -->|<!-- rows -->.*?<!-- end -->|```.*?```|`[^`]*`",
        "",
        page.read_text(),
        flags=re.DOTALL,
    )
    text = re.sub(r"\]\([^)]*\)", "]", text)
    for figure in re.findall(rf"(?<![\w.])\d[\d.,]* {UNITS}", text):
        assert figure in CONSTANTS, figure


def test_the_constants_are_those_of_the_code():
    for figure, values in CONSTANTS.items():
        assert len(set(values)) == 1, figure


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_exist(page):
    text = page.read_text()
    shown = "\n".join(block.code for block in blocks(page, "console"))
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", shown + " ".join(re.findall(r"`make [^`]+`", text)))) <= targets
    extras = {extra for found in re.findall(r"qx-cache-celery\[([\w,]+)\]", text) for extra in found.split(",")}
    assert extras <= set(PROJECT["project"]["optional-dependencies"])
    for module in re.findall(r"python -m (qx_[\w.]+)", text):
        assert find_spec(f"{module}.__main__") or find_spec(module), module


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_test_that_a_page_names_is_there(page):
    for path, name in re.findall(r"`((?:tests|examples)/[\w/.]+\.py)(?:::(\w+))?`", page.read_text()):
        assert (ROOT / path).exists(), path
        assert not name or f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    """In the repository, as a code forge shows the pages; the site's own are checked when it is built."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", [page for page in PAGES if DOCS in page.parents], ids=name_of)
def test_what_a_page_takes_from_another_file_ends_with_its_section(page):
    """What begins below a heading ends before the next one of its rank; what begins in a text, before any."""
    for name, begin, end in pages.FILE.findall(page.read_text()):
        rank = len(re.match("#*", begin)[0]) or 6
        part = re.sub(
            r"```.*?```",
            "",
            pages.part(page, name, *(w.replace("\\n", "\n") for w in (begin, end))),
            flags=re.DOTALL,
        )
        assert not re.findall(rf"^#{{1,{rank}}} .*", part, re.MULTILINE), name


@pytest.mark.parametrize("page", [page for page in PAGES if DOCS in page.parents], ids=name_of)
def test_links_of_the_site_stay_on_it(page):
    shown = re.sub(r"```.*?```", "", pages.read_page(page, page.read_text()), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", shown):
        there = (page.parent / target.partition("#")[0]).resolve()
        assert re.match(r"[a-z]+:|#", target) or (DOCS in there.parents and there.exists()), target


def anchors(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = [title.lower() for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}
