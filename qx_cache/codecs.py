"""How results become bytes and come back."""

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
