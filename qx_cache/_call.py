"""Operations as values: what is sent to Redis and how the answer is read. No I/O here."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Arg = bytes | str | int


class Script:
    """One Lua file of ``qx_cache/scripts``, read on first use.

    Args:
        name: The file's name without ``.lua``; errors name the operation by it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def source(self) -> bytes:
        """The file's text."""
        return files("qx_cache").joinpath("scripts", f"{self.name}.lua").read_bytes()

    @cached_property
    def sha(self) -> str:
        """The name under which the server caches it."""
        return hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


@dataclass(slots=True)  # frozen would cost a microsecond of each round trip
class Call(Generic[T]):
    """One round trip; never changed once it is made.

    Args:
        operation: What errors call it.
        first: The words that are sent.
        script: What is sent instead of its hash when the server does not know it; None for a plain command.
        parse: Reads the server's reply.
        binary: The reply is to come as bytes, whatever the client decodes; a client of a cluster refuses to be
            told so for commands whose replies it adds up.
    """

    operation: str
    first: tuple[Arg, ...]
    script: Script | None
    parse: Callable[[Any], T]
    binary: bool = True

    @property
    def again(self) -> tuple[Arg, ...]:
        """The words that are sent when the server does not know the script."""
        return self.first if self.script is None else ("EVAL", self.script.source, *self.first[2:])

    @property
    def key(self) -> Any:
        """Its first key, by which a client of a cluster finds the node."""
        return self.first[3] if self.first[0] == "EVALSHA" else self.first[1]


def script_call(script: Script, keys: Sequence[bytes], args: Sequence[Arg], parse: Callable[[Any], T]) -> Call[T]:
    """A script: by its hash, and by its text where the server does not know the hash."""
    return Call(script.name, ("EVALSHA", script.sha, len(keys), *keys, *args), script, parse)


def timeout_text(seconds: float) -> str:
    """The timeout of a blocking command; never 0, which would be for ever."""
    return f"{max(seconds, 0.001):.3f}"


def command(parse: Callable[[Any], T], *words: Arg, binary: bool = True) -> Call[T]:
    """A plain command."""
    return Call(str(words[0]), words, None, parse, binary)


def text(value: Any) -> str:
    """A bulk reply as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def word(reply: Any) -> str:
    """The first element of a script's reply, or the whole of it, which says what happened."""
    return text(reply if isinstance(reply, bytes) else reply[0])
