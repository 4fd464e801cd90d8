"""Every error of ``qx_cache``, in one tree.

::

    CacheError
    ├── InvalidValueError (ValueError)       a setting, name or duration that cannot be right
    ├── WrongClientError (TypeError)         an async client where a blocking one is needed, or the reverse
    ├── EmbeddedServerError                  the throwaway server did not start
    ├── CacheValueError (ValueError)         a stored or given value of the wrong shape
    │   └── ResultEncodingError              a result that cannot be serialised
    ├── StoreError                           Redis gave no answer that can be used
    │   ├── StoreUnavailableError            … because it was not reached, or the answer was lost
    │   ├── StoreRefusedError                … because it answered with an error
    │   └── CorruptRecordError               … because the record is not one this version can read
    ├── LeaseLostError                       what was held is not (surely) held any more
    │   ├── ClaimLostError                   … an idempotency claim
    │   └── LockNotHeldError                 … a lock
    ├── LockTimeoutError (TimeoutError)      the lock was not free in the time given
    ├── LockInUseError                       one lock object used by two holders at once
    └── IdempotencyError
        ├── IdempotencyMismatchError         one key, two different requests
        ├── InProgressError                  another holder is still at work
        ├── InterruptedRunError              an earlier run began and its end is unknown
        ├── ResultNotKeptError               the run succeeded, its result was not stored
        └── RecordedFailureError             the run failed, and the failure was kept

"Taken", "running" and "done" are outcomes, not errors: ``claim`` returns them.

Each error's ``args`` are what its class takes, and its text is made when it is asked for, so that errors survive
pickling and Celery's result backends with their type.
"""


class CacheError(Exception):
    """Base of all ``qx_cache`` errors; catch this to catch them all."""


class InvalidValueError(CacheError, ValueError):
    """A setting, name, key or duration cannot be right; nothing was sent. Correct the call."""


class WrongClientError(CacheError, TypeError):
    """A blocking client was given where an async one is needed, or the reverse.

    Args:
        user: The class that was given the client, such as ``"IdempotencyStore"``.
        needed: What it takes, such as ``"redis.asyncio.Redis"``.
        given: The type that it was given.
        instead: The twin that takes this client.
    """

    def __init__(self, user: str, needed: str, given: str, instead: str) -> None:
        super().__init__(user, needed, given, instead)

    def __str__(self) -> str:
        user, needed, given, instead = self.args
        return f"{user} needs a {needed} client, not {given}; for that client use {instead}"


class EmbeddedServerError(CacheError):
    """The throwaway server of ``qx_cache.embedded`` did not start; the message says what to do."""


class CacheValueError(CacheError, ValueError):
    """A value has not the shape asked for; the message names the key and the type, never the value."""


class ResultEncodingError(CacheValueError):
    """A result cannot be serialised; nothing was sent. Return plain data, or give the store another codec."""


class StoreError(CacheError):
    """Redis gave no answer that can be used. What that means is for the caller's policy to decide."""


class StoreUnavailableError(StoreError):
    """Redis was not reached, or its answer was lost.

    The operation may or may not have been carried out. Repeating the same
    call is safe: every script gives the same answer to the same owner.

    Args:
        operation: What was asked, such as ``"claim"``.
        where: Host and port, or socket path; never a password.
        reason: What went wrong, in words.
    """

    def __init__(self, operation: str, where: str, reason: str) -> None:
        super().__init__(operation, where, reason)
        self.operation, self.where, self.reason = operation, where, reason

    def __str__(self) -> str:
        return f"no usable answer from Redis at {self.where} to {self.operation!r}: {self.reason}"


class StoreRefusedError(StoreError):
    """Redis answered with an error (memory, wrong type at the key, no permission); nothing was changed.

    Args:
        operation: What was asked, such as ``"claim"``.
        where: Host and port, or socket path; never a password.
        reason: The server's words.
    """

    def __init__(self, operation: str, where: str, reason: str) -> None:
        super().__init__(operation, where, reason)
        self.operation, self.where, self.reason = operation, where, reason

    def __str__(self) -> str:
        return f"Redis at {self.where} refused {self.operation!r}: {self.reason}"


class CorruptRecordError(StoreError):
    """A record cannot be read: a newer version wrote it, or something else did. It was left as it is.

    Args:
        key: The idempotency key as the caller gave it.
        header: The first bytes of the record; never its body.
    """

    def __init__(self, key: str, header: str) -> None:
        super().__init__(key, header)
        self.key, self.header = key, header

    def __str__(self) -> str:
        return (
            f"the idempotency record of {self.key!r} cannot be read by this version "
            f"(it begins with {self.header!r}); it was not changed: upgrade this process, or delete it by hand"
        )


class LeaseLostError(CacheError):
    """What was held is not held any more, or not surely so; begin no new effect.

    Args:
        name: The key or lock name.
        reason: Why, in words.
    """

    what = "lease"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"the {self.what} {self.name!r} is not held: {self.reason}"


class ClaimLostError(LeaseLostError):
    """An idempotency claim lapsed or was taken over; the result was not stored."""

    what = "claim"


class LockNotHeldError(LeaseLostError):
    """A lock lapsed or was taken over while it was believed to be held; others may have worked meanwhile."""

    what = "lock"


class LockTimeoutError(CacheError, TimeoutError):
    """The lock was not free within the time given; nothing is held.

    Args:
        name: The lock's name.
        wait_seconds: How long was waited.
        holder: Who held it when last asked.
    """

    def __init__(self, name: str, wait_seconds: float, holder: str) -> None:
        super().__init__(name, wait_seconds, holder)
        self.name, self.wait_seconds, self.holder = name, wait_seconds, holder

    def __str__(self) -> str:
        return f"the lock {self.name!r} was not free within {self.wait_seconds} s; held by {self.holder!r}"


class LockInUseError(CacheError):
    """One lock object is one holder; make another object for another holder."""


class IdempotencyError(CacheError):
    """Base of the outcomes of a key that ``run`` and ``get`` cannot turn into a result.

    Args:
        key: The idempotency key as the caller gave it.
        facts: What else is known; each class names its own.
    """

    def __init__(self, key: str, *facts: object) -> None:
        super().__init__(key, *facts)
        self.key = key

    def __str__(self) -> str:
        return f"idempotency key {self.key!r}: {self.says()}"

    def says(self) -> str:
        """What happened and what to do."""
        return ""


class IdempotencyMismatchError(IdempotencyError):
    """The key belongs to a request with another fingerprint; nothing was run and nothing was replayed.

    Args:
        key: The idempotency key as the caller gave it.
        recorded: Fingerprint digest in the record.
        given: Fingerprint digest of this request.
    """

    def __init__(self, key: str, recorded: str, given: str) -> None:
        super().__init__(key, recorded, given)
        self.recorded, self.given = recorded, given

    def says(self) -> str:
        """Names both digests."""
        return (
            f"it belongs to another request (fingerprint {self.recorded} recorded, {self.given} given); "
            "use a new key for a new request"
        )


class InProgressError(IdempotencyError):
    """Another holder is at work on the key; try again when its lease has ended.

    Args:
        key: The idempotency key as the caller gave it.
        holder: Who is at work.
        remaining_seconds: What is left of its lease.
    """

    def __init__(self, key: str, holder: str, remaining_seconds: float) -> None:
        super().__init__(key, holder, remaining_seconds)
        self.holder, self.remaining_seconds = holder, remaining_seconds

    def says(self) -> str:
        """Names the holder."""
        return f"{self.holder!r} is at work, its lease has {self.remaining_seconds:.3f} s left"


class InterruptedRunError(IdempotencyError):
    """A run began and its end is unknown, or had nothing to replay; it was asked not to run again.

    Args:
        key: The idempotency key as the caller gave it.
        fence: The run's fence.
        holder: Whose run it was.
    """

    def __init__(self, key: str, fence: int, holder: str) -> None:
        super().__init__(key, fence, holder)
        self.fence, self.holder = fence, holder

    def says(self) -> str:
        """Names the run."""
        return f"run {self.fence} of {self.holder!r} left no result"


class RepeatedlyInterruptedError(IdempotencyError):
    """Run after run of the key was interrupted, so it is not run again: the work may be killing its worker.

    Args:
        key: The idempotency key as the caller gave it.
        interruptions: How many runs never ended.
    """

    def __init__(self, key: str, interruptions: int) -> None:
        super().__init__(key, interruptions)
        self.interruptions = interruptions

    def says(self) -> str:
        """Names how many."""
        return f"{self.interruptions} runs in a row were interrupted; it is not run again"


class ResultNotKeptError(IdempotencyError):
    """The run succeeded, but its result was not stored (not serialisable); do not run it again."""

    def says(self) -> str:
        """There is nothing to replay."""
        return "the run succeeded, but its result was not kept, so it cannot be replayed"


class RecordedFailureError(IdempotencyError):
    """The run failed and its failure was kept.

    Args:
        key: The idempotency key as the caller gave it.
        error_type: Import path of the exception's type.
        message: The exception's text.
    """

    def __init__(self, key: str, error_type: str, message: str) -> None:
        super().__init__(key, error_type, message)
        self.error_type, self.message = error_type, message

    def says(self) -> str:
        """Names the failure."""
        return f"the run failed with {self.error_type}: {self.message}"


def chained(error: BaseException, failure: BaseException) -> None:
    """Put ``failure`` below an exception that is in flight already, so that both are seen and none is masked."""
    lowest = error
    while lowest.__context__ is not None and lowest.__context__ is not failure:
        lowest = lowest.__context__
    failure.__context__ = None
    lowest.__context__ = failure
