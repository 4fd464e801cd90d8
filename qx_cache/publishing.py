"""What is decided when work is published that runs under a lock: is it there already, and which is the newest."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from qx_cache._call import Call, Script, script_call, text, word
from qx_cache._run import AsyncClient, SyncClient, arun, require_async, require_sync, run
from qx_cache.durations import Duration, milliseconds, seconds
from qx_cache.keys import Keyspace, holder_text

CLAIM, CONFIRM, FREE = Script("publish_claim"), Script("publish_confirm"), Script("publish_free")
NUMBER, LATEST = Script("publish_number"), Script("publish_latest")


@dataclass(frozen=True, slots=True)
class AlreadyPublished:
    """Other work of the same name waits to be run, or runs."""

    id: str
    running: bool


class _Calls:
    """What both twins send, and how they read it."""

    def __init__(self, namespace: str, claim_seconds: Duration, memory_seconds: Duration) -> None:
        self._keys = Keyspace(namespace)
        self._claim_ms = milliseconds(seconds(claim_seconds, "claim_seconds"))
        self._memory_ms = milliseconds(seconds(memory_seconds, "memory_seconds"))

    def claim(self, name: str, work_id: str, *, or_running: bool) -> Call[AlreadyPublished | None]:
        def parse(reply: Any) -> AlreadyPublished | None:
            if word(reply) == "claimed":
                return None
            return AlreadyPublished(unquote(text(reply[1])), word(reply) == "running")

        keys = (self._keys.queued(name), self._keys.lock(name), self._keys.fence(name))
        args = (holder_text(work_id), self._claim_ms, int(or_running))
        return script_call(CLAIM, keys, args, parse)

    def confirm(self, name: str, work_id: str, life_seconds: Duration) -> Call[bool]:
        args = (holder_text(work_id), milliseconds(seconds(life_seconds, "life_seconds")))
        return script_call(CONFIRM, (self._keys.queued(name),), args, lambda reply: word(reply) == "confirmed")

    def free(self, name: str, work_id: str) -> Call[bool]:
        keys, args = (self._keys.queued(name),), (holder_text(work_id),)
        return script_call(FREE, keys, args, lambda reply: word(reply) == "freed")

    def next_number(self, name: str) -> Call[int]:
        keys = (self._keys.fence(name),)
        return script_call(NUMBER, keys, (self._memory_ms,), lambda reply: int(reply[1]))

    def published(self, name: str, number: int) -> Call[int]:
        keys, args = (self._keys.fence(name),), (number, self._memory_ms)
        return script_call(LATEST, keys, args, lambda reply: int(reply[1]))


class Publishing:
    """Keeps work from being published twice, and tells which of it is the newest.

    For work that runs under a ``DistributedLock`` of the same name (``GuardedRun``), which decides in the end.
    What is decided here is a hint: it can cost uniqueness, never work.

    - *Unique*: ``claim``, publish, ``confirm``. Only a confirmed claim holds up others, as a publisher may die in
      between. It ends when the work begins, or by ``free`` when it never will.
    - *Newest*: ``next_number``, publish with the number, ``published``. Work with a lower number than one that was
      published is ``Superseded`` when it asks for its lock. A number counts only after its work was published, so
      a publisher that dies supersedes nothing.

    Args:
        client: A ``redis.asyncio`` client; it stays yours to close.
        namespace: First part of every key; the lock's.
        claim_seconds: Life of a claim that is not confirmed.
        memory_seconds: How long numbers are remembered; longer than work waits in its queue.

    Raises:
        WrongClientError: A blocking client; use ``SyncPublishing``.

    Example:
        ```python
        there = await publishing.claim("report", work_id)
        if there is None:
            await queue.put(work_id)
            await publishing.confirm("report", work_id, life_seconds=3600)
        ```
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        namespace: str = "qx",
        claim_seconds: Duration = 10,
        memory_seconds: Duration = 86_400,
    ) -> None:
        require_async(client, "Publishing")
        self._client = client
        self._calls = _Calls(namespace, claim_seconds, memory_seconds)

    async def claim(self, name: str, work_id: str, *, or_running: bool = False) -> AlreadyPublished | None:
        """Claim ``name`` for work that is about to be published.

        Args:
            name: The lock's name.
            work_id: Of the work; the holder of its lock when it runs.
            or_running: Work that runs under the lock counts as well as work that waits.

        Returns:
            None: publish, then confirm. Else which work is there already; it may be this one.

        Raises:
            StoreError: Redis gave no usable answer; publish all the same.
        """
        return await arun(self._client, self._calls.claim(name, work_id, or_running=or_running))

    async def confirm(self, name: str, work_id: str, *, life_seconds: Duration) -> bool:
        """Tell that the claimed work was published; it may wait for ``life_seconds``.

        Returns:
            False when it has begun meanwhile, or others have claimed the name; nothing was changed.

        Raises:
            StoreError: Redis gave no usable answer; the claim lapses.
        """
        return await arun(self._client, self._calls.confirm(name, work_id, life_seconds))

    async def free(self, name: str, work_id: str) -> bool:
        """End the claim of work that will never run; False when it has none. Errors as ``claim``."""
        return await arun(self._client, self._calls.free(name, work_id))

    async def next_number(self, name: str) -> int:
        """A number for work that is about to be published, higher than all before. Errors as ``claim``."""
        return await arun(self._client, self._calls.next_number(name))

    async def published(self, name: str, number: int) -> int:
        """Tell that the work with this number was published; the highest number that was. Errors as ``claim``."""
        return await arun(self._client, self._calls.published(name, number))


class SyncPublishing:
    """Blocking twin of ``Publishing``."""

    def __init__(
        self,
        client: SyncClient,
        *,
        namespace: str = "qx",
        claim_seconds: Duration = 10,
        memory_seconds: Duration = 86_400,
    ) -> None:
        require_sync(client, "SyncPublishing")
        self._client = client
        self._calls = _Calls(namespace, claim_seconds, memory_seconds)

    def claim(self, name: str, work_id: str, *, or_running: bool = False) -> AlreadyPublished | None:
        """Blocking twin of ``Publishing.claim``."""
        return run(self._client, self._calls.claim(name, work_id, or_running=or_running))

    def confirm(self, name: str, work_id: str, *, life_seconds: Duration) -> bool:
        """Blocking twin of ``Publishing.confirm``."""
        return run(self._client, self._calls.confirm(name, work_id, life_seconds))

    def free(self, name: str, work_id: str) -> bool:
        """Blocking twin of ``Publishing.free``."""
        return run(self._client, self._calls.free(name, work_id))

    def next_number(self, name: str) -> int:
        """Blocking twin of ``Publishing.next_number``."""
        return run(self._client, self._calls.next_number(name))

    def published(self, name: str, number: int) -> int:
        """Blocking twin of ``Publishing.published``."""
        return run(self._client, self._calls.published(name, number))
