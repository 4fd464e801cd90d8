"""``SingletonTask``: one run at a time."""

from collections.abc import Mapping, Sequence
from typing import Any

from celery.result import AsyncResult

from qx_cache import Duration, InvalidValueError, LockInfo, SyncDistributedLock, SyncPublishing
from qx_cache_celery.exclusion import LockGuard
from qx_cache_celery.guard import GuardedTask
from qx_cache_celery.identity import KeySpec
from qx_cache_celery.naming import CONFLICT_HEADER, DUPLICATE_HEADER, conflict_policy, lock_name
from qx_cache_celery.options import check_latest, check_option, lock_mode, namespace
from qx_cache_celery.publication import Publication
from qx_cache_celery.queued import QueueGuard
from qx_cache_celery.runtime import runtime_of


class SingletonTask(GuardedTask):
    """Base for tasks of which one may run at a time: beat jobs above all.

    A lock is held around the run and renewed while it lasts; a worker that dies frees it within ``lock_ttl``.
    When another task holds it, this one ends as SUCCESS with a small marker (``{"qx_skipped": "lock_held", …}``),
    a log line and a signal; in a chain, chord or group, or with links, it is put off instead. A second delivery
    of the same task is never skipped: it waits for the first one's end.

    Class attributes, each also app-wide as ``qx_cache_<name>`` (but the key), durations in seconds or as
    ``timedelta``:

    - ``lock_key`` (or ``unique_on``): a template, a list of argument names (``[]``: the task's name alone) or a
      callable; None: the task's name and all arguments.
    - ``lock_ttl`` (or ``lock_expiry``): life of the lock without a heartbeat; ``heartbeat_interval``: time between
      renewals.
    - ``min_hold``: the shortest time from the start of a run to the start of the next: against two schedulers
      that publish the same tick.
    - ``on_lease_lost``: ``"abort"``: a body whose lock is lost is ended by ``LeaseLost``, which is no
      ``Exception``; ``"continue"``: it learns at ``self.lease.ensure()``, or at its end, only.
    - ``doubt_limit``: for how long the lock may be in doubt, as no renewal is confirmed, before the body is ended
      in the same way; 0 by default.
    - ``on_conflict``: ``"skip"``, ``"defer"`` (order not promised), ``"raise"``, or ``"keep_latest"``: of all that
      are published only the newest need run; what was published before it ends with a marker (``"superseded"``),
      and it waits while another runs. ``apply_async(…, on_conflict=…)`` goes before it.
    - ``lock_mode``: ``"while_executing"``; ``"until_executed"``: while one waits or runs nothing is published, and
      its result is returned instead; ``"until_and_while_executing"``: while one waits; ``"until_executing"``: the
      same, and several may run at once. Parts of a canvas, and calls with a ``task_id``, are always published.
    - ``on_duplicate``: what a publication gets for which there is another: ``"return"`` its ``AsyncResult``,
      ``"raise"``: ``AlreadyQueuedError``; ``apply_async(…, on_duplicate=…)`` goes before it.
    - ``claim_ttl``: how long one may wait, besides its countdown, before it holds up others no more.
    - ``on_store_error``: ``"defer"``, ``"raise"`` or ``"run"``.

    Example:
        ```python
        @app.task(base=SingletonTask)
        def nightly_report(): ...
        ```
    """

    abstract = True
    qx_lock_guard = LockGuard
    qx_queue_guard = QueueGuard

    lock_key: KeySpec = None
    lock_ttl: Duration | None = None
    heartbeat_interval: Duration | None = None
    min_hold: Duration | None = None
    on_lease_lost: str | None = None
    doubt_limit: Duration | None = None
    on_conflict: str | None = None
    on_store_error: str | None = None
    lock_mode: str | None = None
    on_duplicate: str | None = None
    claim_ttl: Duration | None = None

    def apply_async(  # noqa: PLR0917  # as Celery's
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        *,
        on_conflict: str | None = None,
        on_duplicate: str | None = None,
        **options: Any,
    ) -> "AsyncResult[Any]":
        """As ``celery.Task.apply_async``; ``on_conflict`` and ``on_duplicate`` go before the task's own.

        Raises:
            InvalidValueError: One is none of its words, or makes no sense for this task; nothing was published.
            AlreadyQueuedError: With ``on_duplicate="raise"``: nothing was published.
            KeyArgumentError: The arguments do not fit, and no name can be made of them; nothing was published.
        """
        if on_conflict is not None:
            check_option(self.name, "on_conflict", on_conflict)
            check_latest(self.name, on_conflict, lock_mode(self))
        if on_duplicate is not None:
            check_option(self.name, "on_duplicate", on_duplicate)
        if options.get("chain") is not None:  # empty for the last, whose message does not tell it
            said = on_conflict or conflict_policy(self, options.get("headers") or {})
            on_conflict = on_conflict if said else "defer"
        options |= {"producer": producer, "link": link, "link_error": link_error, "shadow": shadow}
        ours = {CONFLICT_HEADER: on_conflict, DUPLICATE_HEADER: on_duplicate}
        headers = {**(options.pop("headers", None) or {}), **{k: v for k, v in ours.items() if v is not None}}

        def send(known_id: str | None, headers: Mapping[str, Any]) -> "AsyncResult[Any]":
            told = {**options, **({"headers": dict(headers)} if headers else {})}
            return super(SingletonTask, self).apply_async(args, kwargs, known_id, **told)  # type: ignore[arg-type]

        if self.app.conf.task_always_eager:
            return send(task_id, headers)
        return Publication(self, args, kwargs, task_id, headers, options).publish(send)

    def lock_info(self, *args: Any, **kwargs: Any) -> LockInfo:
        """Who holds the lock that a call with these arguments needs: task id, since, fence; and who is queued.

        Raises:
            StoreError: Redis gave no usable answer.
        """
        return self._lock(args, kwargs).info()

    def release_lock(self, *args: Any, fence: int | None = None, queued: str | None = None, **kwargs: Any) -> bool:
        """Free a lock whose holder is known to be gone, or the claim of a task that will never run.

        Were the holder alive, it would learn that its lock is lost; were the task still queued, it would run all
        the same.

        Args:
            args: As for the task.
            fence: Of the run that is meant, as ``lock_info`` shows it.
            queued: Instead: id of the queued task that is meant, as ``lock_info`` shows it.
            kwargs: As for the task.

        Returns:
            False when nobody holds it under that fence, or that task has no claim; nothing was changed.

        Raises:
            InvalidValueError: Not just one of ``fence`` and ``queued`` was given.
        """
        if (fence is None) == (queued is None):
            raise InvalidValueError(
                f"task {self.name}: release_lock needs the fence of a run, or the id of a queued task, as "
                "lock_info shows them"
            )
        if queued is not None:
            known = SyncPublishing(runtime_of(self.app).client, namespace=namespace(self.app))
            return known.free(lock_name(self, args, kwargs), queued)
        return self._lock(args, kwargs).release_lock(fence or 0)

    def _lock(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncDistributedLock:
        ttl = self.qx_options.duration(self.app, "lock_ttl")
        return runtime_of(self.app).lock(lock_name(self, args, kwargs), ttl=ttl)
