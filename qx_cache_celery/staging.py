"""Children that are published when their parent's transaction is committed, and not before."""

import uuid
from typing import Any

from celery import Celery, signature
from celery.canvas import Signature, _basemap, _chain, chord, group
from celery.result import AsyncResult

from qx_cache import InvalidValueError
from qx_cache_celery.delivery import COPY
from qx_cache_celery.results import KombuCodec

_NAMESPACE = uuid.UUID("0b9d3d9e-6c86-5d5b-8f1c-6b6f7f1f0a51")
_CANVASES = (_chain, group, chord, _basemap)


class Children:
    """The children of one run, in order.

    Args:
        app: Publishes them.
        key: Name of the run's record: their ids are derived from it.
    """

    def __init__(self, app: Celery, key: str) -> None:
        self._app, self._key = app, key
        self._staged: list[dict[str, Any]] = []

    def add(self, child: "Signature[Any]") -> "AsyncResult[Any]":
        """Stage one; its result can be asked for once it has run.

        Raises:
            InvalidValueError: A chain, group or chord, whose parts would have no stable ids.
        """
        whole: Any = child  # whatever it is
        if not isinstance(whole, Signature) or isinstance(whole, _CANVASES):
            raise InvalidValueError(
                f"tx.stage takes the signature of one task, not {child!r}; stage a task that begins the canvas"
            )
        task_id = str(uuid.uuid5(_NAMESPACE, f"{self._key}/{len(self._staged)}"))
        self._staged.append(dict(child.clone(task_id=task_id)))
        result: AsyncResult[Any] = self._app.AsyncResult(task_id)
        return result

    def encoded(self) -> bytes | None:
        """What the row keeps until they are published; None when there are none."""
        return self._codec().encode(self._staged) if self._staged else None

    def publish(self, staged: bytes) -> None:
        """Publish what a row keeps.

        Safe to repeat where the children are idempotent: they have the same ids, and a header that says that
        they may have been published before.
        """
        for told in self._codec().decode(staged):
            child: Any = signature(told, app=self._app)
            child.apply_async(headers={**(child.options.get("headers") or {}), COPY: 0})

    def _codec(self) -> KombuCodec:
        conf = self._app.conf
        return KombuCodec(self._app, serializer=conf.task_serializer, accept=conf.accept_content)
