"""Task name and arguments -> key and fingerprint. Pure: no Redis, no request, no settings."""

import enum
import inspect
import json
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from string import Formatter
from typing import Any
from urllib.parse import quote

from qx_cache import InvalidValueError, digest

KeySpec = str | Sequence[str] | Callable[..., str] | None
"""A template such as ``"{order_id}"``, argument names, a callable that takes the task's arguments, or None."""

_SHOWN = 80


class KeyArgumentError(InvalidValueError):
    """An argument cannot be made part of a key; the task's body did not run. Names task and argument."""


class Arguments:
    """Binds a task's arguments to its signature.

    Args:
        task_name: For errors.
        function: What the task runs, without ``self``.
    """

    def __init__(self, task_name: str, function: Callable[..., Any], *, drop_first: bool) -> None:
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())[1 if drop_first else 0 :]
        self.task_name = task_name
        self.names = [p.name for p in parameters]
        self._signature = signature.replace(parameters=parameters)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Name -> value, defaults filled in.

        Raises:
            KeyArgumentError: The arguments do not fit the signature.
        """
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise KeyArgumentError(f"task {self.task_name}: {error}") from None
        bound.apply_defaults()
        return dict(bound.arguments)

    def without_defaults(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Only what differs from its default, so that a new parameter changes no key."""
        return {name: value for name, value in values.items() if not self._is_default(name, value)}

    def _is_default(self, name: str, value: Any) -> bool:
        parameter = self._signature.parameters[name]
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return not value
        if parameter.default is parameter.empty:
            return False
        return value is parameter.default or self.encoded(name, value) == self.encoded(name, parameter.default)

    def encoded(self, name: str, value: Any) -> str:
        """Canonical text of one argument.

        Raises:
            KeyArgumentError: Its type has none.
        """
        try:
            return canonical(value)
        except TypeError as error:
            raise KeyArgumentError(
                f"task {self.task_name}: argument {name!r} cannot be part of a key: {error}; "
                "name other arguments, or give a callable that returns text"
            ) from None

    def all_encoded(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Canonical text of all arguments that differ from their defaults."""
        given = self.without_defaults(self.bind(args, kwargs))
        return json.dumps({name: self.encoded(name, value) for name, value in given.items()}, sort_keys=True)


class KeyMaker:
    """Makes a key's text from a task's arguments, after one of the four kinds of ``KeySpec``.

    Args:
        option: The option's name, for errors.
        spec: The option's value; not None.
        arguments: The task's signature.

    Raises:
        InvalidValueError: The spec names an argument that the task has not, or is of no known kind.
    """

    def __init__(self, option: str, spec: KeySpec, arguments: Arguments) -> None:
        self._option, self._spec, self._arguments = option, spec, arguments
        self._fields = list(Formatter().parse(spec)) if isinstance(spec, str) else []
        for name in self._named():
            if name not in arguments.names:
                raise InvalidValueError(
                    f"task {arguments.task_name}: {option} names {name!r}, which is none of its arguments: "
                    f"{', '.join(arguments.names) or '(it has none)'}"
                )

    def text(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """The key's text for these arguments.

        Raises:
            KeyArgumentError: An argument cannot be made part of a key, or the text is empty.
        """
        if callable(self._spec):
            return self._checked(self._spec(*args, **kwargs))
        values = self._arguments.bind(args, kwargs)
        if isinstance(self._spec, str):
            return self._checked(self._rendered(values))
        chosen = [self._arguments.encoded(name, values[name]) for name in self._spec or ()]
        return digest(json.dumps(chosen).encode()) if chosen else ""

    def _named(self) -> list[str]:
        spec, task = self._spec, self._arguments.task_name
        if callable(spec):
            return []
        if isinstance(spec, str):
            names = [field.split(".")[0].split("[")[0] for _, field, _, _ in self._fields if field is not None]
            if not names:
                raise InvalidValueError(
                    f"task {task}: {self._option} {spec!r} names no argument, so all calls would share one key; "
                    'write a template such as "{order_id}"'
                )
            return names
        if isinstance(spec, Sequence) and all(isinstance(name, str) for name in spec):
            return list(spec)
        raise InvalidValueError(
            f"task {task}: {self._option} must be a template, a list of argument names or a callable, not {spec!r}"
        )

    def _rendered(self, values: Mapping[str, Any]) -> str:
        alone = len(self._fields) == 1 and not self._fields[0][0]
        parts = []
        for literal, field, spec, _ in self._fields:
            parts.append(literal)
            if field is None:
                continue
            value = self._field(field, spec or "", values)
            parts.append(value if alone else quote(value, safe=" @+"))
        return "".join(parts)

    def _field(self, field: str, spec: str, values: Mapping[str, Any]) -> str:
        task = self._arguments.task_name
        try:
            value, _ = Formatter().get_field(field, (), values)
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            raise KeyArgumentError(f"task {task}: {{{field}}} is not in its arguments: {error!r}") from None
        if isinstance(value, enum.Enum):
            value = value.value
        if not isinstance(value, str | int | Decimal | uuid.UUID | date | time) or value == "":
            raise KeyArgumentError(
                f"task {task}: {{{field}}} is {_shown(value)}; a key needs text, an integer, a Decimal, a UUID or "
                "a date there, and not an empty one"
            )
        return format(value, spec)

    def _checked(self, text: Any) -> str:
        if not isinstance(text, str) or not text:
            raise KeyArgumentError(
                f"task {self._arguments.task_name}: {self._option} must give non-empty text, not {_shown(text)}"
            )
        return text


def key_name(task_name: str, kind: str, text: str, *, nesting: int = 0, group_index: int | None = None) -> str:
    """The name of a record: task, kind of key, the marks that tell equal keys apart, and the key's text."""
    marks = (f".r{nesting}" if nesting else "") + (f".g{group_index}" if group_index is not None else "")
    return f"{quote(task_name, safe='.-_')}:{kind}{marks}:{text}"


def canonical(value: Any) -> str:  # noqa: C901, PLR0911  # one return a type reads best
    """Text that is equal for equal values of equal types, on every machine and in every process.

    Raises:
        TypeError: The value's type has no such text.
    """
    match value:
        case None | bool():
            return json.dumps(value)
        case enum.Enum():
            return f"enum {type(value).__qualname__} {canonical(value.value)}"
        case int():
            return f"int {int(value)}"
        case float():
            return f"float {float(value)!r}" if math.isfinite(value) else f"float {value}"
        case str():
            return json.dumps(str(value))
        case bytes() | bytearray():
            return f"bytes {bytes(value).hex()}"
        case list() | tuple():
            return json.dumps(["list", *map(canonical, value)])
        case dict():
            pairs = sorted((canonical(key), canonical(item)) for key, item in value.items())
            return json.dumps(["dict", *pairs])
        case set() | frozenset():
            return json.dumps(["set", *sorted(map(canonical, value))])
        case datetime() | date() | time():
            return f"{type(value).__name__} {value.isoformat()}"
        case timedelta():
            return f"timedelta {value // timedelta(microseconds=1)}"
        case Decimal() | uuid.UUID():
            return f"{type(value).__name__} {value}"
    raise TypeError(f"{_shown(value)} has no canonical text")


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= _SHOWN else text[:_SHOWN] + '…'}"
