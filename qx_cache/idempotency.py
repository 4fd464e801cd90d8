"""A store that remembers which work was claimed and what came of it, and its blocking twin."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from qx_cache._call import Call
from qx_cache._many import arun_many, run_many
from qx_cache._records import MAX_RESULT_BYTES, SCAN_KEYS, Records, Wait
from qx_cache._run import (
    AsyncClient,
    SyncClient,
    arun,
    cancellations,
    require_async,
    require_sync,
    run,
    to_the_end,
)
from qx_cache._waits import await_wake, shared, wait_for_wake
from qx_cache.codecs import Codec, JsonCodec
from qx_cache.durations import Duration
from qx_cache.errors import ClaimLostError, InProgressError, ResultEncodingError, StoreError, chained
from qx_cache.heartbeat import AsyncHeartbeat, Heartbeat, async_heartbeat_of, heartbeat_of
from qx_cache.outcomes import Claimed, Done, Outcome, RecordInfo, Running, refuse, replayed

T = TypeVar("T")


class IdempotencyStore:
    """Remembers which work was claimed and what came of it.

    One round trip decides who works: of any number of concurrent ``claim`` calls for a key, one is answered
    ``Claimed``. A claim that is not renewed lapses and may be taken over, with a higher fence; the late owner
    can then record nothing. What is promised is one *recorded* run: the work itself can run again when its
    holder dies after the effect and before ``complete``, stalls past its lease, or Redis loses the record.

    Args:
        client: A ``redis.asyncio`` client; it stays yours to close.
        ttl_seconds: How long a result is replayed, and how long an unfinished run leaves its trace.
        lease_seconds: Life of a claim that nobody renews.
        namespace: First part of every key; change it to share a Redis.
        codec: Turns results into bytes and back; JSON by default.
        max_result_bytes: Larger results are not kept: the record says that the work was done, and no more.
            Those of 1 KiB and more are compressed where that pays.
        heartbeat: Renews the leases of ``run``; one for all of the client by default.
        owner_prefix: Up to 6 characters that all owner tokens of this process begin with.

    Raises:
        WrongClientError: A blocking client; use ``SyncIdempotencyStore``.
        InvalidValueError: A duration of 0, negative, or no number.

    Example:
        ```python
        match await store.claim("order:42"):
            case Claimed() as claim:
                await store.complete(claim, await place_order(42))
            case Done(result=result):
                return result
        ```
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        ttl_seconds: Duration = 86_400,
        lease_seconds: Duration = 30,
        namespace: str = "qx",
        codec: Codec | None = None,
        max_result_bytes: int = MAX_RESULT_BYTES,
        heartbeat: AsyncHeartbeat | Heartbeat | None = None,
        owner_prefix: str = "",
    ) -> None:
        require_async(client, "IdempotencyStore")
        self._client = client
        self._heartbeat = heartbeat or async_heartbeat_of(client)
        self._records = Records(
            namespace=namespace,
            ttl_seconds=ttl_seconds,
            lease_seconds=lease_seconds,
            codec=codec or JsonCodec(),
            max_result_bytes=max_result_bytes,
            owner_prefix=owner_prefix,
        )

    async def claim(
        self,
        key: str,
        *,
        holder: str = "",
        fingerprint: str | None = None,
        retries: int = 0,
        redelivery: bool = False,
        takeover: bool = True,
        wait_seconds: Duration | None = 0,
    ) -> Outcome:
        """Claim ``key``, or learn what became of it, in one round trip.

        Args:
            key: Non-empty text that names the work.
            holder: Who claims: a task id, or a label for people to read; host and pid by default. The same
                holder again is the same work delivered again, so its fingerprint is not compared.
            fingerprint: Canonical text of the request, compared by digest with the record's; None for none.
            retries: Which attempt of the holder this is.
            redelivery: This may be a second delivery: a run of this holder that has ended is reported as
                ``Ended`` instead of being claimed anew.
            takeover: False: a lapsed claim is reported as ``Interrupted`` and not taken over.
            wait_seconds: How long to wait while another holder is at work; None for as long as it takes. The
                server wakes who waits; then the outcome is a result, or a claim, or ``Running`` when the time is
                over.

        Raises:
            StoreError: Redis gave no usable answer; safe to repeat.
        """
        wait = Wait(wait_seconds)
        ask = partial(
            self._records.claim,
            key,
            holder=holder,
            fingerprint=fingerprint,
            retries=retries,
            redelivery=redelivery,
            takeover=takeover,
            waiting=bool(wait),
        )
        outcome = await self._claim(key, holder, ask)
        while isinstance(outcome, Running) and (pause := wait.pause(outcome.remaining_seconds)):
            await self._await_wake(key, pause)
            outcome = await self._claim(key, holder, ask)
        return outcome

    async def renew(self, claim: Claimed) -> bool:
        """Give the claim a fresh lease; False when it is lost. A heartbeat does this for you."""
        return await arun(self._client, self._records.renew(claim))

    async def complete(
        self,
        claim: Claimed,
        result: Any,
        *,
        kept: bool = True,
        finalised: bool = True,
        mirrored: bool = False,
        ttl_seconds: Duration | None = None,
    ) -> bool:
        """Record ``result`` for later claims of the key. Safe to repeat; rebuilds a record that vanished.

        Args:
            claim: What ``claim`` returned.
            result: What to replay.
            kept: False: record that the work was done, without its result.
            finalised: False: something is still to follow the result; see ``finalise``.
            mirrored: True: the result is kept elsewhere as well, in a database that is right where they disagree.
            ttl_seconds: How long it is replayed; the store's by default.

        Returns:
            False when the result was not kept: ``kept`` is False, or it is over ``max_result_bytes``.

        Raises:
            ClaimLostError: The claim was taken over; nothing was recorded.
            ResultEncodingError: The result has no bytes; nothing was sent.
            StoreError: Redis gave no usable answer; repeat it.
        """
        call, keeps = self._records.complete(
            claim, result, kept=kept, finalised=finalised, mirrored=mirrored, ttl=ttl_seconds
        )
        await arun(self._client, call)
        return keeps

    async def fail(self, claim: Claimed, error: BaseException, *, ttl_seconds: Duration | None = None) -> None:
        """Record a failure for later claims: type path and message. Errors as ``complete``."""
        await arun(self._client, self._records.fail(claim, error, ttl_seconds))

    async def release(self, claim: Claimed, failure: BaseException | None = None) -> None:
        """Record an end with nothing to replay; another holder may claim. Errors as ``complete``.

        Args:
            claim: What ``claim`` returned.
            failure: How the run ended: told to a redelivery of this holder, until ``finalise`` says that who was
                to learn of it has. Others never see it.
        """
        await arun(self._client, self._records.release(claim, failure))

    async def abandon(self, claim: Claimed, *, counted: bool = True) -> bool:
        """End the lease now with nothing recorded, so that the next claim is a takeover.

        Args:
            claim: What ``claim`` returned.
            counted: False for an orderly hand-back, which is no interruption and not counted as an attempt.

        Returns:
            False when the claim was not ours any more.
        """
        return await arun(self._client, self._records.abandon(claim, counted=counted))

    async def abandon_lost(self, key: str, *, holder: str, owner_prefix: str) -> bool:
        """End the lease of a process that is known to be dead; True when there was a live one.

        Args:
            key: The idempotency key.
            holder: The holder that the dead process worked for.
            owner_prefix: What its owner tokens began with.
        """
        call = self._records.abandon_lost(key, holder=holder, owner_prefix=owner_prefix)
        return await arun(self._client, call)

    async def finalise(self, key: str, fence: int) -> bool:
        """Note that the end of run ``fence`` is passed on, what follows it dispatched; False when it is gone."""
        return await arun(self._client, self._records.finalise(key, fence))

    async def get(self, key: str, default: Any = None) -> Any:
        """The stored result of ``key``, or ``default`` when there is none (yet).

        Raises:
            ResultNotKeptError: The work was done, its result was not kept.
            RecordedFailureError: The work failed and the failure was kept.
            CorruptRecordError: The record cannot be read by this version.
            StoreError: Redis gave no usable answer.
        """
        return await arun(self._client, self._records.get(key, default))

    async def wait(self, key: str, default: Any = None, *, wait_seconds: Duration | None = None) -> Any:
        """The result of ``key``, once the run that is under way has ended; never claims it.

        Every waiter is woken by the server, none polls. Where no run is under way it returns at once.

        Args:
            key: The idempotency key.
            default: What to return when there is no result: no run, or one that failed, was given up, or lapsed.
            wait_seconds: How long to wait; None for as long as the run is alive.

        Raises:
            InProgressError: The run was still alive after ``wait_seconds``.
            StoreError: Redis gave no usable answer; and the errors of ``get``.
        """
        wait = Wait(wait_seconds)
        call = self._records.await_end(key)
        while isinstance(
            found := await shared(self._client, call.key, partial(arun, self._client, call)), RecordInfo
        ):
            pause = wait.pause(found.remaining_seconds)
            if not pause:
                raise InProgressError(key, found.holder, found.remaining_seconds)
            await self._await_wake(key, pause)
        return self._records.result(key, found, default)

    async def look(self, key: str) -> Outcome | None:
        """What became of ``key``, as a claim would tell it, without claiming; None when there is no record.

        ``Interrupted`` stands for a run whose end is unknown. Errors as ``get``.
        """
        return await arun(self._client, self._records.look(key))

    async def resolve(self, key: str, result: Any, *, fence: int, ttl_seconds: Duration | None = None) -> bool:
        """Record ``result`` for a run that is over but did not say how: for an operator who knows.

        Args:
            key: The idempotency key.
            result: What to replay from now on.
            fence: The run that is meant, as ``look`` or ``peek`` shows it.
            ttl_seconds: How long it is replayed; the store's by default.

        Returns:
            False when that run is alive, or there is no record of it any more; nothing was changed.

        Raises:
            ResultEncodingError: The result has no bytes; nothing was sent.
            StoreError: Redis gave no usable answer; safe to repeat.
        """
        return await arun(self._client, self._records.resolve(key, fence, result, ttl=ttl_seconds))

    async def mark_unknown(self, key: str, *, fence: int, ttl_seconds: Duration | None = None) -> bool:
        """Record that nobody knows how the run ended, so that it is not taken over; see ``resolve``."""
        return await arun(self._client, self._records.settle(key, fence, "unknown", ttl=ttl_seconds))

    async def forget(self, key: str, *, fence: int) -> bool:
        """Forget the run ``fence``, unless it is alive: the next claim begins anew. Returns as ``resolve``."""
        return await arun(self._client, self._records.settle(key, fence, "-"))

    async def peek(self, key: str) -> RecordInfo | None:
        """The header of a record, without its result; None when there is none. Errors as ``get``."""
        return await arun(self._client, self._records.peek(key))

    async def scan(self, *, state: str | None = None, older_than: Duration = 0) -> AsyncIterator[RecordInfo]:
        """Go through the records of the namespace, a few hundred keys at a time, without holding up the server.

        Records that come or go meanwhile may be missed; one that this version cannot read is left out.

        Args:
            state: Only these; see ``RecordInfo.state``.
            older_than: Only those whose run, or lease, ended at least so long ago.
        """
        wanted = self._records.wanted(state, older_than)
        found = self._client.scan_iter(match=self._records.pattern(), count=SCAN_KEYS)
        batch: list[Any] = []
        async for name in found:
            batch.append(name)
            if len(batch) == SCAN_KEYS:
                for info in wanted(await arun_many(self._client, self._records.peeks(batch))):
                    yield info
                batch = []
        for info in wanted(await arun_many(self._client, self._records.peeks(batch))):
            yield info

    async def set(self, key: str, result: Any, *, ttl_seconds: Duration | None = None) -> bool:
        """Store a result without a claim; the first caller wins.

        Returns:
            True when stored; False when a result or a live claim is there, and nothing changed.
        """
        return await arun(self._client, self._records.put(key, result, ttl=ttl_seconds))

    async def run(
        self,
        key: str,
        function: Callable[..., Awaitable[T]],
        *args: Any,
        fingerprint: str | None = None,
        wait_seconds: Duration | None = 10.0,
        **kwargs: Any,
    ) -> T:
        """Run ``function(*args, **kwargs)`` once for ``key``, or return what it returned before.

        Claims, keeps the lease alive, completes, replays; waits while another holder is at work. When the
        function raises, the claim is released and the next caller runs it again; when it has returned, its
        result is recorded, also if this task is cancelled meanwhile.

        Args:
            key: Non-empty text that names the work.
            function: Awaitable work; it runs in this task.
            args: For ``function``.
            fingerprint: Canonical text of the request; another one under the same key is refused.
            wait_seconds: How long to wait for another holder; None for as long as it takes.
            kwargs: For ``function``.

        Raises:
            InProgressError: Another holder was still at work after ``wait_seconds``.
            IdempotencyMismatchError: The key belongs to another request.
            ResultNotKeptError: It was done, and there is no result to replay.
            ClaimLostError: The lease was lost meanwhile; the result was not recorded.
            StoreError: Redis gave no usable answer.
        """
        outcome = await self.claim(key, fingerprint=fingerprint, wait_seconds=wait_seconds)
        if isinstance(outcome, Done):
            return replayed(outcome)  # type: ignore[no-any-return]  # what function returned, as stored
        if not isinstance(outcome, Claimed):
            refuse(outcome)
        self._heartbeat.add(outcome.lease)
        try:
            result = await function(*args, **kwargs)
        except Exception as error:
            await self._end_below(error, lambda: self.release(outcome))
            raise
        except BaseException as error:
            await self._end_below(error, lambda: self.abandon(outcome, counted=False))
            raise
        else:
            await to_the_end(lambda: self._complete_or_mark(outcome, result))
            return result
        finally:
            self._heartbeat.remove(outcome.lease)
            if isinstance(self._heartbeat, AsyncHeartbeat):
                await asyncio.shield(self._heartbeat.rest())

    async def _claim(self, key: str, holder: str, ask: Callable[..., Call[Outcome]]) -> Outcome:
        """Claim; a cancelled claim is handed back."""
        owner, before = self._records.owner(), cancellations()
        try:
            outcome = await arun(self._client, ask(owner=owner))
            if cancellations() > before:
                raise asyncio.CancelledError  # noqa: TRY301  # ends as any other cancellation
        except asyncio.CancelledError:
            with suppress(StoreError):
                undo = self._records.undo(key, holder=holder, owner=owner)
                await asyncio.shield(arun(self._client, undo))
            raise
        return outcome

    async def _await_wake(self, key: str, seconds: float) -> None:
        def call(block_seconds: float) -> Call[None]:
            return self._records.wake(key, block_seconds)

        await await_wake(self._client, self._records.keys(key)[2], call, seconds)

    @staticmethod
    async def _end_below(error: BaseException, end: Callable[[], Awaitable[Any]]) -> None:
        """End a claim while ``error`` is in flight, which is what the caller is to see."""
        try:
            await to_the_end(end)
        except (ClaimLostError, StoreError) as failure:
            chained(error, failure)

    async def _complete_or_mark(self, claim: Claimed, result: Any) -> None:
        try:
            await self.complete(claim, result)
        except ResultEncodingError:
            await self.complete(claim, None, kept=False)
            raise


class SyncIdempotencyStore:
    """Blocking twin of ``IdempotencyStore``."""

    def __init__(
        self,
        client: SyncClient,
        *,
        ttl_seconds: Duration = 86_400,
        lease_seconds: Duration = 30,
        namespace: str = "qx",
        codec: Codec | None = None,
        max_result_bytes: int = MAX_RESULT_BYTES,
        heartbeat: Heartbeat | None = None,
        owner_prefix: str = "",
    ) -> None:
        require_sync(client, "SyncIdempotencyStore")
        self._client = client
        self._heartbeat = heartbeat or heartbeat_of(client)
        self._records = Records(
            namespace=namespace,
            ttl_seconds=ttl_seconds,
            lease_seconds=lease_seconds,
            codec=codec or JsonCodec(),
            max_result_bytes=max_result_bytes,
            owner_prefix=owner_prefix,
        )

    def claim(
        self,
        key: str,
        *,
        holder: str = "",
        fingerprint: str | None = None,
        retries: int = 0,
        redelivery: bool = False,
        takeover: bool = True,
        wait_seconds: Duration | None = 0,
    ) -> Outcome:
        """Blocking twin of ``IdempotencyStore.claim``."""
        wait = Wait(wait_seconds)
        ask = partial(
            self._records.claim,
            key,
            holder=holder,
            fingerprint=fingerprint,
            retries=retries,
            redelivery=redelivery,
            takeover=takeover,
            waiting=bool(wait),
        )
        outcome = run(self._client, ask())
        while isinstance(outcome, Running) and (pause := wait.pause(outcome.remaining_seconds)):
            self._wait_for_wake(key, pause)
            outcome = run(self._client, ask())
        return outcome

    def renew(self, claim: Claimed) -> bool:
        """Blocking twin of ``IdempotencyStore.renew``."""
        return run(self._client, self._records.renew(claim))

    def complete(
        self,
        claim: Claimed,
        result: Any,
        *,
        kept: bool = True,
        finalised: bool = True,
        mirrored: bool = False,
        ttl_seconds: Duration | None = None,
    ) -> bool:
        """Blocking twin of ``IdempotencyStore.complete``."""
        call, keeps = self._records.complete(
            claim, result, kept=kept, finalised=finalised, mirrored=mirrored, ttl=ttl_seconds
        )
        run(self._client, call)
        return keeps

    def fail(self, claim: Claimed, error: BaseException, *, ttl_seconds: Duration | None = None) -> None:
        """Blocking twin of ``IdempotencyStore.fail``."""
        run(self._client, self._records.fail(claim, error, ttl_seconds))

    def release(self, claim: Claimed, failure: BaseException | None = None) -> None:
        """Blocking twin of ``IdempotencyStore.release``."""
        run(self._client, self._records.release(claim, failure))

    def abandon(self, claim: Claimed, *, counted: bool = True) -> bool:
        """Blocking twin of ``IdempotencyStore.abandon``."""
        return run(self._client, self._records.abandon(claim, counted=counted))

    def abandon_lost(self, key: str, *, holder: str, owner_prefix: str) -> bool:
        """Blocking twin of ``IdempotencyStore.abandon_lost``."""
        call = self._records.abandon_lost(key, holder=holder, owner_prefix=owner_prefix)
        return run(self._client, call)

    def finalise(self, key: str, fence: int) -> bool:
        """Blocking twin of ``IdempotencyStore.finalise``."""
        return run(self._client, self._records.finalise(key, fence))

    def get(self, key: str, default: Any = None) -> Any:
        """Blocking twin of ``IdempotencyStore.get``."""
        return run(self._client, self._records.get(key, default))

    def wait(self, key: str, default: Any = None, *, wait_seconds: Duration | None = None) -> Any:
        """Blocking twin of ``IdempotencyStore.wait``."""
        wait = Wait(wait_seconds)
        call = self._records.await_end(key)
        while isinstance(found := run(self._client, call), RecordInfo):
            pause = wait.pause(found.remaining_seconds)
            if not pause:
                raise InProgressError(key, found.holder, found.remaining_seconds)
            self._wait_for_wake(key, pause)
        return self._records.result(key, found, default)

    def look(self, key: str) -> Outcome | None:
        """Blocking twin of ``IdempotencyStore.look``."""
        return run(self._client, self._records.look(key))

    def resolve(self, key: str, result: Any, *, fence: int, ttl_seconds: Duration | None = None) -> bool:
        """Blocking twin of ``IdempotencyStore.resolve``."""
        return run(self._client, self._records.resolve(key, fence, result, ttl=ttl_seconds))

    def mark_unknown(self, key: str, *, fence: int, ttl_seconds: Duration | None = None) -> bool:
        """Blocking twin of ``IdempotencyStore.mark_unknown``."""
        return run(self._client, self._records.settle(key, fence, "unknown", ttl=ttl_seconds))

    def forget(self, key: str, *, fence: int) -> bool:
        """Blocking twin of ``IdempotencyStore.forget``."""
        return run(self._client, self._records.settle(key, fence, "-"))

    def peek(self, key: str) -> RecordInfo | None:
        """Blocking twin of ``IdempotencyStore.peek``."""
        return run(self._client, self._records.peek(key))

    def scan(self, *, state: str | None = None, older_than: Duration = 0) -> Iterator[RecordInfo]:
        """Blocking twin of ``IdempotencyStore.scan``."""
        wanted = self._records.wanted(state, older_than)
        found = self._client.scan_iter(match=self._records.pattern(), count=SCAN_KEYS)
        while batch := list(islice(found, SCAN_KEYS)):
            yield from wanted(run_many(self._client, self._records.peeks(batch)))

    def set(self, key: str, result: Any, *, ttl_seconds: Duration | None = None) -> bool:
        """Blocking twin of ``IdempotencyStore.set``."""
        return run(self._client, self._records.put(key, result, ttl=ttl_seconds))

    def run(
        self,
        key: str,
        function: Callable[..., T],
        *args: Any,
        fingerprint: str | None = None,
        wait_seconds: Duration | None = 10.0,
        **kwargs: Any,
    ) -> T:
        """Blocking twin of ``IdempotencyStore.run``."""
        outcome = self.claim(key, fingerprint=fingerprint, wait_seconds=wait_seconds)
        if isinstance(outcome, Done):
            return replayed(outcome)  # type: ignore[no-any-return]  # what function returned, as stored
        if not isinstance(outcome, Claimed):
            refuse(outcome)
        self._heartbeat.add(outcome.lease)
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            self._end_below(error, lambda: self.release(outcome))
            raise
        except BaseException as error:
            self._end_below(error, lambda: self.abandon(outcome, counted=False))
            raise
        else:
            self._complete_or_mark(outcome, result)
            return result
        finally:
            self._heartbeat.remove(outcome.lease)

    @staticmethod
    def _end_below(error: BaseException, end: Callable[[], Any]) -> None:
        try:
            end()
        except (ClaimLostError, StoreError) as failure:
            chained(error, failure)

    def _complete_or_mark(self, claim: Claimed, result: Any) -> None:
        try:
            self.complete(claim, result)
        except ResultEncodingError:
            self.complete(claim, None, kept=False)
            raise

    def _wait_for_wake(self, key: str, seconds: float) -> None:
        wait_for_wake(self._client, lambda block_seconds: self._records.wake(key, block_seconds), seconds)
