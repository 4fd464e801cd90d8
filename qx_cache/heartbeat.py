"""One thread that renews every lease of a process, with one round trip for all that are due.

Decisions stand in ``Schedule`` and do no I/O; ``Heartbeat`` carries them out. The rules: renew at a third
of the life; take along all that is due within 10 % of it; after an error try again every twentieth of the
life and never give up; a *yes* makes a lease HELD again, a *no* makes it LOST for good.
"""

import logging
import os
import threading
from collections.abc import Sequence
from itertools import groupby

from qx_cache._call import Call, script_call, text
from qx_cache._connect import sibling
from qx_cache._run import AsyncClient, SyncClient, run_many
from qx_cache.durations import Duration, seconds
from qx_cache.errors import InvalidValueError, StoreError
from qx_cache.lease import Clock, Lease, boottime

_log = logging.getLogger("qx_cache.heartbeat")
CHUNK = 100
"""Leases in one script call: more would hold up the server's other clients."""


class Schedule:
    """When which lease is due, and what an answer means. No I/O and no thread."""

    def __init__(self) -> None:
        self._due: dict[Lease, float] = {}
        self._interval: dict[Lease, float] = {}

    def __len__(self) -> int:
        return len(self._due)

    def add(self, lease: Lease, interval: float, now: float) -> None:
        """Renew ``lease`` every ``interval`` seconds from ``now`` on."""
        self._due[lease], self._interval[lease] = now + interval, interval

    def remove(self, lease: Lease) -> None:
        """Renew ``lease`` no more."""
        self._due.pop(lease, None)
        self._interval.pop(lease, None)

    def next_due(self) -> float | None:
        """When the next renewal is due; None when nothing is held."""
        return min(self._due.values(), default=None)

    def take(self, now: float) -> list[Lease]:
        """What to renew now: nothing until one is due, then all due within 10 % of their interval."""
        first = self.next_due()
        if first is None or first > now:
            return []
        return [lease for lease, due in self._due.items() if due <= now + self._interval[lease] / 10]

    def answered(self, lease: Lease, answer: str | StoreError, sent_at: float, now: float) -> None:
        """Read one answer; a lease that was removed meanwhile is none of our business."""
        if lease not in self._due:
            return
        if isinstance(answer, StoreError):
            self._due[lease] = now + lease.ttl_seconds / 20
        elif answer == "renewed":
            lease.renewed(sent_at)
            self._due[lease] = sent_at + self._interval[lease]
        else:
            self.remove(lease)
            if answer == "lost":
                lease.lose("another holder took it over, or it was removed from the server")


class Heartbeat:
    """Renews leases from one thread, with a connection of its own.

    The thread starts with the first lease and lives as long as the process. It uses its own client (own
    pool, short timeouts, no retries), never the caller's. After a fork the child begins with nothing: the
    parent's leases are the parent's.

    Args:
        client: A redis-py client, async or blocking; its server and credentials are used, not its pool.

    Example:
        ```python
        heartbeat = Heartbeat(client)
        heartbeat.add(lease)
        ...
        heartbeat.remove(lease)
        ```
    """

    def __init__(self, client: AsyncClient | SyncClient, *, clock: Clock = boottime) -> None:
        self._origin = client
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._timeout = self._sleeps_until = 0.0
        self._forget()

    def add(self, lease: Lease, interval_seconds: Duration | None = None) -> None:
        """Renew ``lease`` from now on.

        Args:
            lease: What is held.
            interval_seconds: Time between renewals; a third of the lease's life by default.

        Raises:
            InvalidValueError: The interval is longer than half the life.
        """
        interval = interval_for(lease.ttl_seconds, interval_seconds)
        self._check_pid()
        now = self._clock()
        with self._wake:
            self._schedule.add(lease, interval, now)
            self._timeout = min(self._timeout, lease.ttl_seconds / 6)
            if self._thread is None:
                self._stopping = False
                self._thread = threading.Thread(target=self._live, name="qx-cache-heartbeat", daemon=True)
                self._thread.start()
            elif now + interval < self._sleeps_until:
                self._wake.notify()

    def remove(self, lease: Lease) -> None:
        """Renew ``lease`` no more. It is not given back by this."""
        self._check_pid()
        with self._wake:
            self._schedule.remove(lease)

    def stop(self) -> None:
        """End the thread; what it renewed is left to lapse."""
        self._check_pid()
        with self._wake:
            thread, self._thread, self._stopping = self._thread, None, True
            self._wake.notify()
        if thread is not None:
            thread.join()

    def _check_pid(self) -> None:
        if self._pid != os.getpid():
            self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._wake = threading.Condition()
        self._schedule = Schedule()
        self._thread = None
        self._stopping = False
        self._sleeps_until = 0.0
        self._timeout = 5.0

    def _live(self) -> None:
        client: SyncClient | None = None
        timeout = 0.0
        try:
            while (due := self._wait()) is not None:
                if client is None or self._timeout < timeout:
                    if client is not None:
                        client.close()
                    timeout = self._timeout
                    client = sibling(self._origin, timeout_seconds=timeout)
                self._beat(client, due)
        finally:
            if client is not None:
                client.close()

    def _wait(self) -> list[Lease] | None:
        """Sleep until something is due; None when told to stop."""
        with self._wake:
            while not self._stopping:
                now = self._clock()
                if due := self._schedule.take(now):
                    return due
                next_due = self._schedule.next_due()
                self._sleeps_until = float("inf") if next_due is None else next_due
                self._wake.wait(None if next_due is None else max(0.0, next_due - now))
            return None

    def _beat(self, client: SyncClient, due: Sequence[Lease]) -> None:
        sent_at = self._clock()
        answers = renew(client, due)
        now = self._clock()
        with self._wake:
            for lease, answer in zip(due, answers, strict=True):
                self._schedule.answered(lease, answer, sent_at, now)
        failures = [answer for answer in answers if isinstance(answer, StoreError)]
        if failures:
            _log.warning("renewal of %d of %d leases failed: %s", len(failures), len(due), failures[0])


def renew(client: SyncClient, leases: Sequence[Lease]) -> list[str | StoreError]:
    """Renew all ``leases`` in one round trip: a word of the script each, or the error that hit its chunk."""
    ordered = sorted(leases, key=lambda lease: lease.renewal.script.name)
    chunks: list[list[Lease]] = []
    for _, group in groupby(ordered, key=lambda lease: lease.renewal.script.name):
        same = list(group)
        chunks += [same[i : i + CHUNK] for i in range(0, len(same), CHUNK)]
    answers: dict[Lease, str | StoreError] = {}
    calls: list[Call[list[str]]] = [_call(chunk) for chunk in chunks]
    for chunk, words in zip(chunks, run_many(client, calls), strict=True):
        for i, lease in enumerate(chunk):
            answers[lease] = words if isinstance(words, StoreError) else words[i]
    return [answers[lease] for lease in leases]


def interval_for(ttl_seconds: float, interval_seconds: Duration | None) -> float:
    """The time between renewals of a lease of ``ttl_seconds``, checked.

    Raises:
        InvalidValueError: It is 0, negative, or longer than half the life.
    """
    if interval_seconds is None:
        return ttl_seconds / 3
    interval = seconds(interval_seconds, "heartbeat_interval")
    if interval > ttl_seconds / 2:
        raise InvalidValueError(
            f"heartbeat_interval {interval} s must be at most half of the lease of {ttl_seconds} s, "
            "so that one lost renewal does not lose the lease"
        )
    return interval


def _call(leases: Sequence[Lease]) -> Call[list[str]]:
    renewals = [lease.renewal for lease in leases]
    keys = [renewal.key for renewal in renewals]
    args = [arg for renewal in renewals for arg in renewal.args]
    return script_call(renewals[0].script, keys, args, lambda reply: [text(word) for word in reply])
