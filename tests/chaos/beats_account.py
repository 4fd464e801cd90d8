"""What became of each tick, run and effect of a beat run: from the journal, the ledger and the list of faults."""

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

GRACE_SECONDS = 0.3
"""How late a beat may look at what is due, when the leader is gone right after that."""
HANDOVER_SECONDS, TAKEOVER_LIVES = 1.0, 1.2
NO_REDIS, NO_BEAT, NO_WORKER = "no Redis", "no beat led", "no worker"
WITH_WORKER, UNKNOWN = "in the hands of a killed worker", "no reason known"
HELD_UP = "held up by Redis, and the leader gone by then"
REASONS = (NO_REDIS, NO_BEAT, NO_WORKER, WITH_WORKER, HELD_UP, UNKNOWN)
NEVER = (
    "effects with an old fence accepted",
    "ticks dispatched by one that did not lead",
    f"ticks missing, {UNKNOWN}",
)
NEVER_WHILE_DATA_LAST = (
    "overlapping runs",
    "runs again of a tick after its end",
    "runs again of a tick without a reason",
    "runs without a known end",
)
TAKEOVER = "takeover after a {} of the leader, worst (s)"


def takeover_limits(lock_seconds):
    """Seconds from each kind of fault of a leader to the next election, at most."""
    lapse = TAKEOVER_LIVES * lock_seconds
    return {"kill": lapse, "freeze": lapse, "stop": HANDOVER_SECONDS}


def ends_of_runs(rows):
    """How each run ended that is known to have: ``finish``, or ``lease_lost`` by what the package logs."""
    going, ends = {}, {}
    for row in rows:
        place = row.get("id"), row["group"]
        if row["what"] == "start":
            going[place] = row["run"]
        elif row["what"] in {"finish", "lease_lost"} and place in going:
            ends[going.pop(place)] = row["what"]
    return ends


@dataclass
class Fault:
    """What was done to whom: a beat or worker by its process group, or Redis."""

    kind: str
    role: str
    group: int
    at: float
    until: float = math.inf
    """When it was thawed, or Redis started again."""


@dataclass
class Tick:
    """What the journal knows of one due time."""

    due: float
    dispatches: list[float]
    deliveries: list[dict]
    starts: list[dict]
    skipped: bool


class Account:
    """The figures of one run between ``began`` and ``stopped``."""

    def __init__(self, rows, effects, faults, span, *, loses_data=False, lock_seconds):
        self._rows, self._effects, self._faults = rows, effects, faults
        self._began, self._stopped = span
        self._loses_data, self._limits = loses_data, takeover_limits(lock_seconds)
        self._ends = ends_of_runs(rows)
        self._killed = {fault.group for fault in faults if fault.kind == "kill"}
        self._killed |= {row["group"] for row in rows if row["what"] == "crashed"}
        self._windows = self._all_windows()
        self.ticks = self._all_ticks()

    def _rows_of(self, what):
        return [row for row in self._rows if row["what"] == what]

    def _all_ticks(self):
        dues = range(math.ceil(self._began), math.floor(self._stopped - GRACE_SECONDS) + 1)
        ticks = {float(due): Tick(float(due), [], [], [], skipped=False) for due in dues}
        tick_of = {row["id"]: float(row["tick"].split()[1]) for row in self._rows if "tick" in row}
        for row in self._rows:
            due = tick_of.get(row.get("id"))
            if due is None:
                continue
            tick = ticks.setdefault(due, Tick(due, [], [], [], skipped=False))
            if row["what"] == "dispatched":
                tick.dispatches.append(row["at"])
            elif row["what"] == "delivered":
                tick.deliveries.append(row)
            elif row["what"] == "start":
                tick.starts.append(row)
            elif row["what"] == "skipped":
                tick.skipped = True
        return [ticks[due] for due in sorted(ticks)]

    def _all_windows(self):
        """``(from, to, why)`` of each time in which something was not alive."""
        redis = [(fault.at, fault.until, NO_REDIS) for fault in self._faults if fault.role == "redis"]
        beats = self._without("beat", "elected", "demoted", comes_back=False)
        workers = self._without("worker", "ready", "crashed", comes_back=True)
        return [*redis, *((*gap, NO_BEAT) for gap in beats), *((*gap, NO_WORKER) for gap in workers)]

    def _without(self, role, comes, goes, *, comes_back):
        """The gaps in which no process of that role was up."""
        changes = [
            (row["at"], row["group"], row["what"] == comes) for row in self._rows if row["what"] in {comes, goes}
        ]
        for fault in self._faults:
            if fault.role == role:
                changes.append((fault.at, fault.group, False))
                if comes_back and fault.until < math.inf:
                    changes.append((fault.until, fault.group, True))
        up, gaps, since = set(), [], 0.0
        for at, group, is_up in sorted(changes):
            before = bool(up)
            (up.add if is_up else up.discard)(group)
            if before and not up:
                since = at
            elif up and not before:
                gaps.append((since, at))
        return gaps if up else [*gaps, (since, math.inf)]

    def why_missing(self, tick):
        """Why a tick neither ran nor was skipped."""
        if not tick.dispatches and not tick.deliveries:
            known = self._why(tick.due, tick.due + GRACE_SECONDS, {NO_REDIS, NO_BEAT})
            return self._held_up(tick.due) if known == UNKNOWN else known
        at = min(tick.dispatches, default=tick.due)
        lost_with_data = self._loses_data and not tick.deliveries
        known = self._why(at, math.inf if lost_with_data else at + 1, {NO_REDIS, NO_WORKER})
        return WITH_WORKER if known == UNKNOWN and self._in_dead_hands(tick, at) else known

    def _in_dead_hands(self, tick, at):
        """True when the worker that took the tick, or may have, was killed before it began to run."""
        killed = {
            fault.group: fault.at for fault in self._faults if (fault.role, fault.kind) == ("worker", "kill")
        }
        if tick.deliveries:
            return any(0 <= killed.get(row["group"], 0) - row["at"] < 1 for row in tick.deliveries)
        return any(0 <= kill - at < GRACE_SECONDS for kill in killed.values())

    def _held_up(self, due):
        """A dispatch that Redis held up delays the next one, by a turn at most; the leader may be gone by then."""
        after_redis = self._why(due - 1, due, {NO_REDIS}) == NO_REDIS
        return HELD_UP if after_redis and self._why(due, due + 1, {NO_BEAT}) == NO_BEAT else UNKNOWN

    def _why(self, first, last, reasons):
        found = [why for begin, end, why in self._windows if why in reasons and begin <= last and first <= end]
        return found[0] if found else UNKNOWN

    def missing(self):
        """Ticks that neither ran nor were skipped, each with the reason."""
        gone = [tick for tick in self.ticks if not tick.starts and not tick.skipped]
        return [(tick, self.why_missing(tick)) for tick in gone]

    def run_again(self):
        """Runs of a tick after one that came to its end; after one that was cut short; without such a reason."""
        finished = cut = unknown = 0
        for tick in self.ticks:
            for before, _ in pairwise(sorted(tick.starts, key=lambda row: row["at"])):
                how = self.how_ended(before)
                finished += how == "finish"
                cut += how in {"lease_lost", "killed"}
                unknown += how == "unknown"
        return finished, cut, unknown

    def how_ended(self, start):
        """``finish``, ``lease_lost``, ``killed`` with its worker, or ``unknown``."""
        if start["run"] in self._ends:
            return self._ends[start["run"]]
        return "killed" if start["group"] in self._killed else "unknown"

    def overlaps(self):
        """Runs that began before the last step of an earlier one that ``ensure()`` let pass, and by how much."""
        spans = {}
        for run, _, at, _ in self._effects:
            first, last = spans.get(run, (at, at))
            spans[run] = min(first, at), max(last, at)
        found, latest = [], -math.inf
        for run, (first, last) in sorted(spans.items(), key=lambda item: item[1]):
            if first <= latest:
                found.append((run, latest - first))
            latest = max(latest, last)
        return found

    def old_effects(self):
        """Accepted writes with a fence below one that was accepted before, or with that of another run."""
        highest, owners, old = 0, {}, 0
        for run, fence, _, accepted in self._effects:
            if accepted:
                old += fence < highest or owners.setdefault(fence, run) != run
                highest = max(highest, fence)
        return old

    def strays(self):
        """Dispatches by a beat that did not lead, by its own word; one that is on its way as that ends is none."""
        leads, since, strays = {}, {}, 0
        for row in sorted(self._rows, key=lambda row: row["at"]):
            if row["what"] in {"elected", "demoted"}:
                leads[row["group"]], since[row["group"]] = row["what"] == "elected", row["at"]
            elif row["what"] == "dispatched" and not leads.get(row["group"]):
                strays += row["began"] - since.get(row["group"], 0) > GRACE_SECONDS
        return strays

    def takeovers(self, kind):
        """Seconds from each such fault of a leader to the election of another beat."""
        elected = self._rows_of("elected")
        found = []
        for fault in self._faults:
            if (fault.role, fault.kind) == ("beat", kind):
                later = [row["at"] for row in elected if row["at"] > fault.at and row["group"] != fault.group]
                found.append(round(min(later, default=math.inf) - fault.at, 2))
        return found

    def told(self):
        """The figures, and how many of them are what must not be."""
        finished, cut, unexplained = self.run_again()
        missing = Counter(why for _, why in self.missing())
        taken = {kind: max(self.takeovers(kind), default=None) for kind in ("kill", "freeze", "stop")}
        accepted = sum(row[3] for row in self._effects)
        figures = {
            "faults": len(self._faults),
            "workers that ended by themselves": len(self._rows_of("crashed")),
            **self._told_of_ticks(),
            **{f"ticks missing, {why}": missing[why] for why in REASONS},
            **self._told_of_runs(),
            "runs again of a tick after its end": finished,
            "runs again of a tick after a run cut short": cut,
            "runs again of a tick without a reason": unexplained,
            "overlapping runs": len(self.overlaps()),
            "effects accepted": accepted,
            "effects refused": len(self._effects) - accepted,
            "effects with an old fence accepted": self.old_effects(),
            **{TAKEOVER.format(kind): seconds for kind, seconds in taken.items()},
        }
        return figures, self._bad(figures, taken)

    def _told_of_ticks(self):
        return {
            "ticks": len(self.ticks),
            "ticks dispatched": sum(bool(tick.dispatches) for tick in self.ticks),
            "ticks dispatched twice": sum(len(tick.dispatches) > 1 for tick in self.ticks),
            "ticks dispatched by one that did not lead": self.strays(),
            "ticks run": sum(bool(tick.starts) for tick in self.ticks),
            "ticks skipped": sum(tick.skipped and not tick.starts for tick in self.ticks),
        }

    def _told_of_runs(self):
        ends = Counter(self.how_ended(start) for tick in self.ticks for start in tick.starts)
        return {
            "runs": ends.total(),
            "runs killed": ends["killed"],
            "runs over at a lost lock": ends["lease_lost"],
            "runs without a known end": ends["unknown"],
        }

    def _bad(self, figures, taken):
        late = sum(seconds is not None and seconds > self._limits[kind] for kind, seconds in taken.items())
        names = NEVER if self._loses_data else NEVER + NEVER_WHILE_DATA_LAST
        return sum(figures[name] for name in names) + late + (not figures["runs"])
