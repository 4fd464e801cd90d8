"""What a heartbeat does when, and what an answer means: the decisions of thread and asyncio task. No I/O.

The rules: renew at a third of the life; take along all that is due within 10 % of it; after an error try again
every twentieth of the life and never give up; a *yes* makes a lease HELD again, a *no* makes it LOST for good.
A lock that is waited for is looked after when its holder's life ends, and every few seconds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from qx_cache._call import Call, Script, script_call, text
from qx_cache.durations import Duration, seconds
from qx_cache.errors import InvalidValueError, StoreError
from qx_cache.lease import Lease, Renewal

CHUNK = 100
"""Items in one script call: more would hold up the server's other clients."""

_LONGEST_TIMEOUT_SECONDS = 5.0
_LONGEST_WATCH_SECONDS = 5.0
_WATCH_RETRY_SECONDS = 1.0
_AFTER_THE_END_SECONDS = 0.005


@dataclass(eq=False, slots=True)
class Watch:
    """A lock that this process waits for.

    Args:
        renewal: How it is looked after; the answer is the milliseconds that its holder has left.
    """

    renewal: Renewal

    @staticmethod
    def pause(remaining_seconds: float) -> float:
        """Seconds until it is to be looked after again, when its holder has ``remaining_seconds`` left."""
        return min(remaining_seconds + _AFTER_THE_END_SECONDS, _LONGEST_WATCH_SECONDS)


Item = Lease | Watch
Answer = str | StoreError


class Schedule:
    """When which lease or watch is due, and what an answer means."""

    def __init__(self) -> None:
        self._due: dict[Item, float] = {}
        self._interval: dict[Item, float] = {}
        self._asked: dict[Item, Renewal] = {}
        self.lateness = 0.0

    def __len__(self) -> int:
        return len(self._due)

    def add(self, item: Item, interval: float, now: float) -> None:
        """Attend to ``item`` every ``interval`` seconds from ``now`` on."""
        self._due[item], self._interval[item] = now + interval, interval

    def remove(self, item: Item) -> None:
        """Attend to ``item`` no more."""
        self._due.pop(item, None)
        self._interval.pop(item, None)
        self._asked.pop(item, None)

    def next_due(self) -> float | None:
        """When the next item is due; None when there is none."""
        return min(self._due.values(), default=None)

    def timeout(self) -> float:
        """Seconds that an answer may take: a sixth of the shortest life, so that there is time for another try."""
        lives = (item.ttl_seconds / 6 for item in self._due if isinstance(item, Lease))
        return min(lives, default=_LONGEST_TIMEOUT_SECONDS)

    def take(self, now: float) -> list[Item]:
        """What to send now: nothing until one is due, then all due within 10 % of their interval."""
        first = self.next_due()
        if first is None or first > now:
            return []
        self.lateness = now - first
        taken = [item for item, due in self._due.items() if due <= now + self._interval[item] / 10]
        for item in taken:
            if isinstance(item, Lease):
                item.unconfirmed()  # before the answer, which may take long: the process may have been frozen
            self._asked[item] = item.renewal
        return taken

    def answered(self, item: Item, answer: Answer, sent_at: float, now: float) -> None:
        """Read one answer; an item that was removed meanwhile is none of our business."""
        if item not in self._due:
            return
        if isinstance(item, Watch):
            pause = _WATCH_RETRY_SECONDS if isinstance(answer, StoreError) else item.pause(int(answer) / 1000)
            self._due[item], self._interval[item] = now + pause, pause
        elif isinstance(answer, StoreError):
            item.unconfirmed()
            self._due[item] = now + item.ttl_seconds / 20
        elif answer == "renewed" and item.renewal is not self._asked.get(item, item.renewal):
            self._due[item] = now  # it was given another life meanwhile, which this one may have overwritten
        elif answer == "renewed":
            item.renewed(sent_at)
            self._due[item] = sent_at + self._interval[item]
        else:
            self.remove(item)
            if answer == "lost":
                item.lose("another holder took it over, or it was removed from the server")


def chunks(items: Sequence[Item], size: int = CHUNK) -> Iterator[list[Item]]:
    """``items`` in lists of one script each, at most ``size`` long."""
    ordered = sorted(items, key=lambda item: item.renewal.script.name)
    for _, group in groupby(ordered, key=lambda item: item.renewal.script.name):
        same = list(group)
        yield from (same[i : i + size] for i in range(0, len(same), size))


def chunk_call(items: Sequence[Item]) -> Call[list[str]]:
    """One call for all ``items``, which share a script; its reply has an element for each, in order."""
    keys = [key for item in items for key in item.renewal.keys]
    args = [arg for item in items for arg in item.renewal.args]
    script: Script = items[0].renewal.script
    return script_call(script, keys, args, lambda reply: [text(word) for word in reply])


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
