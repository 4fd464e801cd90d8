"""Results as Celery would store them: the app's ``result_serializer``, through kombu."""

from collections.abc import Iterable
from typing import Any

from celery import Celery
from kombu.exceptions import EncodeError
from kombu.serialization import dumps, loads, prepare_accept_content

from qx_cache import CacheValueError, ResultEncodingError


class KombuCodec:
    """A codec whose bytes are a line with content type and encoding, then what kombu made.

    Args:
        app: Gives ``result_serializer`` and ``result_accept_content``.
        serializer: Another one.
        accept: Other content types.
    """

    def __init__(self, app: Celery, *, serializer: str | None = None, accept: Iterable[str] | None = None) -> None:
        accepted = accept or app.conf.result_accept_content or app.conf.accept_content
        self._serializer = serializer or app.conf.result_serializer
        self._accept = prepare_accept_content(accepted)

    def encode(self, value: Any) -> bytes:
        """Serialise ``value``; the cause of the error is what Celery itself would have raised."""
        try:
            content_type, encoding, data = dumps(value, serializer=self._serializer)
        except EncodeError as error:
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            raise ResultEncodingError(f"a result of type {kind} cannot be serialised: {error}") from error
        body: Any = data  # text, or bytes, as the serializer likes
        return f"{content_type} {encoding}\n".encode() + (body if isinstance(body, bytes) else body.encode())

    def decode(self, data: bytes) -> Any:
        """Read it again; only content types that the app accepts for results."""
        line, _, body = data.partition(b"\n")
        content_type, _, encoding = line.decode(errors="replace").partition(" ")
        try:
            return loads(body, content_type, encoding, accept=self._accept)
        except Exception as error:
            raise CacheValueError(f"a stored result of type {content_type!r} cannot be read: {error}") from error
