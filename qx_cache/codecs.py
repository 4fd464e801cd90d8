"""How results become bytes and come back."""

import zlib
from typing import Any, Protocol

from pydantic_core import PydanticSerializationError, from_json, to_json

from qx_cache.errors import CacheValueError, ResultEncodingError


class Codec(Protocol):
    """Turns results into bytes and back. Any object with these two methods will do."""

    def encode(self, value: Any) -> bytes:
        """Bytes of ``value``; raises ``ResultEncodingError`` when it has none."""
        ...

    def decode(self, data: bytes) -> Any:
        """The value again; raises ``CacheValueError`` when ``data`` is not of this codec."""
        ...


class JsonCodec:
    """JSON by ``pydantic_core``: models and dataclasses come back as plain data."""

    def encode(self, value: Any) -> bytes:
        """Write ``value`` as JSON."""
        try:
            return to_json(value)
        except (PydanticSerializationError, ValueError) as error:
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            raise ResultEncodingError(f"a result of type {kind} cannot be written as JSON") from error

    def decode(self, data: bytes) -> Any:
        """Read JSON."""
        try:
            return from_json(data)
        except ValueError as error:
            raise CacheValueError("a stored result is not JSON; was it written with another codec?") from error


COMPRESS_FROM_BYTES = 1024
"""Results from this size on are compressed, where that saves at least a tenth."""


def packed(codec: Codec, value: Any, most_bytes: int) -> tuple[str, bytes]:
    """A result as flag and body: ``"-"`` plain, ``"z"`` compressed, ``"n"`` not kept for its size.

    Raises:
        ResultEncodingError: It has no bytes.
    """
    body = codec.encode(value)
    if len(body) > most_bytes:
        return "n", b""
    if len(body) >= COMPRESS_FROM_BYTES and len(smaller := zlib.compress(body)) < len(body) * 0.9:
        return "z", smaller
    return "-", body


def unpacked(codec: Codec, compressed: bool, body: bytes) -> Any:  # noqa: FBT001  # read beside packed
    """The value that ``packed`` was given.

    Raises:
        CacheValueError: The body is not of this codec.
    """
    try:
        data = zlib.decompress(body) if compressed else body
    except zlib.error:
        raise CacheValueError("a stored result cannot be decompressed; it is damaged") from None
    return codec.decode(data)
