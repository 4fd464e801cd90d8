"""Blocks that are made of the code: options, settings, signals, events, errors, scripts, targets, layers."""

import ast
import importlib
import inspect
import re
import textwrap
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from block import block, row, table

ROOT = Path(__file__).parents[2]


def source(module: str) -> ast.Module:
    """A module, as it is written."""
    return ast.parse(Path(importlib.import_module(module).__file__ or "").read_text())


def notes_of(body: list[ast.stmt]) -> dict[str, str]:
    """Name -> the text that stands below its assignment."""
    found = {}
    for one, following in pairwise(body):
        target = (
            one.target
            if isinstance(one, ast.AnnAssign)
            else one.targets[0]
            if isinstance(one, ast.Assign)
            else None
        )
        if (
            isinstance(target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            found[target.id] = markdown(str(following.value.value))
    return found


def markdown(text: str) -> str:
    """A docstring's text, on one line."""
    return " ".join(text.replace("``", "`").split())


def first_sentence(text: str | None) -> str:
    """The first paragraph of a docstring."""
    return markdown((text or "").split("\n\n")[0])


def plain(value: Any) -> str:
    """A default as people write it."""
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return f'`"{value}"`' if isinstance(value, str) else str(value)


@block("settings")
def _settings() -> Iterator[str]:
    from qx_cache import CacheSettings

    kind = next(node for node in source("qx_cache.settings").body if isinstance(node, ast.ClassDef))
    notes = notes_of(kind.body)
    yield from table("field", "environment variable", "default", "what it is")
    for name, field in CacheSettings.model_fields.items():
        default = getattr(field.default, "get_secret_value", lambda value=field.default: value)()
        shown = f"`{default}`" if isinstance(default, str) else plain(default)
        yield row(f"`{name}`", f"`QX_CACHE__{name.upper()}`", shown, notes[name])


@block("options")
def _options() -> Iterator[str]:
    from qx_cache_celery import IdempotentTask, SingletonTask, options

    aliases = {name: alias for alias, name in options._ALIASES.items()}
    names = dict.fromkeys([*options._KEYS, *options.DEFAULTS])
    yield from table("option", "values", "default", "of")
    for name in names:
        words = ", ".join(f'`"{word}"`' for word in options._WORDS.get(name, ()))
        words = words or ("seconds or `timedelta`" if name in options._DURATIONS else _VALUES.get(name, ""))
        default = _DEFAULTS.get(name) or plain(options.DEFAULTS.get(name))
        of = [kind.__name__ for kind in (IdempotentTask, SingletonTask) if hasattr(kind, name)]
        shown = f"`{name}`" + (f" or `{aliases[name]}`" if name in aliases else "")
        yield row(shown, words + (", a callable" if name == "on_interrupted" else ""), default, ", ".join(of))


_VALUES = {
    "idempotency_key": "template, names, callable",
    "lock_key": "template, names, callable",
    "fingerprint": "True, False, names, callable",
    "max_interruptions": "a whole number",
    "keep_failures": "True, False",
    "tx": "`sessionmaker`, engine, Django alias",
}
_DEFAULTS = {
    "idempotency_key": "the task id",
    "lock_key": "name and all arguments",
    "heartbeat_interval": "a third of the life",
    "on_conflict": '`"skip"`; `"defer"` in a canvas',
    "doubt_limit": "for ever; 0 for a lock",
}


@block("signals")
def _signals() -> Iterator[str]:
    from celery.utils.dispatch import Signal

    from qx_cache_celery import signals

    notes = notes_of(source("qx_cache_celery.signals").body)
    yield from table("signal", "keywords", "sent when")
    for name, signal in vars(signals).items():
        if isinstance(signal, Signal):
            told = sorted(signal.providing_args or (), key=_order)
            yield row(f"`{name}`", ", ".join(f"`{word}`" for word in told), notes[name])


def _order(word: str) -> tuple[int, str]:
    first = ("task_id", "key")
    return (first.index(word) if word in first else len(first), word)


@block("events")
def _events() -> Iterator[str]:
    """Every ``subject.log(level, event, message)`` of report.py, whose message may be a name just above it."""
    yield from table("`qx_event`", "level", "message begins")
    for function in source("qx_cache_celery.report").body:
        named = ast.Constant("")
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "message":
                named = node.value
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "subject.log":
                level, event, message = node.args[:3]
                said = named if isinstance(message, ast.Name) else message
                said = said.left if isinstance(said, ast.BinOp) else said
                yield row(f"`{ast.literal_eval(event)}`", level.attr, f"`{ast.literal_eval(said).strip()}`")


@block("errors")
def _errors() -> Iterator[str]:
    import qx_cache_celery.inbox  # noqa: F401  # its classes are known once it is imported
    from qx_cache import CacheError

    yield from table("error", "what it says")
    yield from _branch(CacheError, 0)


def _branch(kind: type[BaseException], depth: int) -> Iterator[str]:
    more = [base.__name__ for base in kind.__bases__[1:]]
    name = f"{'· ' * depth}`{kind.__name__}`" + (f" ({', '.join(more)})" if more else "")
    yield row(name, first_sentence(kind.__doc__))
    ours = [child for child in kind.__subclasses__() if child.__module__.startswith("qx_cache")]
    for child in sorted(ours, key=lambda child: (child.__module__, inspect.getsourcelines(child)[1])):
        yield from _branch(child, depth + 1)


@block("scripts")
def _scripts() -> Iterator[str]:
    for path in sorted((ROOT / "qx_cache" / "scripts").glob("*.lua")):
        lines = path.read_text().splitlines()
        head = [line[2:].removeprefix(" ") for line in lines[: _end_of(lines)] if line.startswith("--")]
        yield from (f"## `{path.name}`", "", "```text", *head, "```", "")


def _end_of(lines: list[str]) -> int:
    return next(i for i, line in enumerate(lines) if not line.startswith(("--", "#!")))


@block("targets")
def _targets() -> Iterator[str]:
    yield "```{container} qx-targets"
    yield from table("target", "what it does")
    for name, told in re.findall(r"^([a-z]+):.*?## (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE):
        yield row(f"`make {name}`", told)
    yield "```"


@block("layers")
def _layers() -> Iterator[str]:
    """The import contracts, as pyproject.toml has them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    for contract in contracts:
        if contract["type"] == "layers":
            package = contract["layers"][0].partition(".")[0]
            layers = [layer.replace(f"{package}.", "").replace(" | ", ", ") for layer in contract["layers"]]
            yield from (f"`{package}`:", "", "```text", *_wrapped(layers), "```", "")


def _wrapped(layers: list[str]) -> Iterator[str]:
    for number, layer in enumerate(layers):
        yield from textwrap.wrap(layer, 60, initial_indent="↓ " if number else "  ", subsequent_indent="  ")
