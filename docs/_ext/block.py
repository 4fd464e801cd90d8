"""The blocks that are made, by name; and the tables that they are made of."""

from collections.abc import Callable, Iterator
from typing import Any

MAKERS: dict[str, Callable[[], Iterator[str]]] = {}
"""Name -> what makes the lines of the block."""


def block(name: str) -> Callable[[Callable[[], Iterator[str]]], Callable[[], Iterator[str]]]:
    """Decorate what makes the lines of a block."""

    def keep(maker: Callable[[], Iterator[str]]) -> Callable[[], Iterator[str]]:
        MAKERS[name] = maker
        return maker

    return keep


def table(*head: str) -> Iterator[str]:
    """The first two lines of a table."""
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"


def row(*cells: Any) -> str:
    """One of its rows."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"
