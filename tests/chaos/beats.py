"""Beat under faults: three beats, two workers, a job of 2.5 s due each second, and what became of each tick.

``make beats`` kills, freezes and restarts the leader, a worker and Redis in turn, for 60 s or ``--seconds N``.
A run of the job is over at its first failed ``ensure()``: no two may overlap, no effect with an old fence be
accepted, no tick run again after its end; each tick that neither ran nor was skipped is listed with what was not
alive then. A killed run is lost with Celery's early acks, the default here, and delivered again with
``--acks late``. With ``--lose-data`` Redis comes back empty each time. ``--write`` plays all three and writes
``beats.md``.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

from beats_account import NEVER, NEVER_WHILE_DATA_LAST, TAKEOVER, Account, takeover_limits
from beats_stage import JOB_LOCK_SECONDS, KINDS, REDIS_KINDS, Stage

TABLE = Path(__file__).parent / "beats.md"
PAUSE_SECONDS = (0.5, 1.5)
RUNS = {
    "faults": {},
    "faults, late acks": {"acks": "late"},
    "Redis loses its data": {"lose_data": True},
}


def kinds_of(stage, said):
    """What is done in turn, as pairs of a strike and its kind."""
    if said.lose_data:
        return [(stage.strike_redis, "kill"), (stage.strike_worker_and_redis, "kill")]
    both = [(strike, kind) for strike in (stage.strike_leader, stage.strike_worker) for kind in KINDS]
    return [*both, *((stage.strike_redis, kind) for kind in REDIS_KINDS)]


def disturb(stage, said, say):
    """Strike in turn until the time is over; when that began and ended."""
    dice = random.Random(said.seed)  # noqa: S311  # a repeatable run
    stage.steady()
    say("all there")
    began, kinds, turn = time.time(), kinds_of(stage, said), []
    while time.time() - began < said.seconds:
        turn = turn or dice.sample(kinds, len(kinds))
        strike, kind = turn.pop()
        say(strike(kind))
        stage.steady()
        time.sleep(dice.uniform(*PAUSE_SECONDS))
    return began, time.time()


def play(said):
    """One run: its figures, and how many of them are what must not be."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qb-")))
        if said.keep:
            stack.callback(shutil.copytree, folder, said.keep, dirs_exist_ok=True)
        begun = time.time()

        def say(line):
            print(f"{time.time() - begun:6.1f} s  {line}", file=sys.stderr, flush=True)

        stage = Stage(said, stack, folder)
        span = disturb(stage, said, say)
        stage.drain()
        told = stage.journal(), stage.app.read_ledger(), stage.faults, span
        account = Account(*told, loses_data=said.lose_data, lock_seconds=said.lock_seconds)
        for tick, why in account.missing():
            say(f"missing: the tick due at {tick.due - begun:.1f} s ({why})")
        figures, bad = account.told()
        print(json.dumps({"run": name_of(said), "seed": said.seed, "broker": said.broker, **figures, "bad": bad}))
        return figures, bad


def name_of(said):
    return "Redis loses its data" if said.lose_data else "faults" + (", late acks" if said.acks == "late" else "")


def table(said, played):
    """A line a figure, a column a run."""
    limits = {TAKEOVER.format(kind): limit for kind, limit in takeover_limits(said.lock_seconds).items()}
    limits |= dict.fromkeys(NEVER + NEVER_WHILE_DATA_LAST, 0)
    lines = [
        "# Beat under faults",
        "",
        f"Made by `make beats ARGS=--write`: {said.seconds:g} s each, seed {said.seed}, broker {said.broker};",
        f"beat's lock lives {said.lock_seconds:g} s, the job's {JOB_LOCK_SECONDS:g} s. A killed run is lost with",
        "early acks, delivered again with late ones; one that lost its lock is put off, and may run again. Where",
        f"Redis loses its data, these are shown and not promised: {', '.join(NEVER_WHILE_DATA_LAST)}.",
        "",
        "| | at most | " + " | ".join(played) + " |",
        "|---|---|" + "---|" * len(played),
    ]
    for name in next(iter(played.values())):
        cells = [limits.get(name, ""), *("-" if one[name] is None else one[name] for one in played.values())]
        lines.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main():
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--seconds", type=float, default=60)
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--broker", choices=["redis", "rabbitmq"], default="redis")
    words.add_argument("--lock-seconds", type=float, default=2.0, help="life of beat's lock (the default is 10 s)")
    words.add_argument(
        "--acks", choices=["early", "late"], default="early", help="the job's; early is Celery's own"
    )
    words.add_argument(
        "--lose-data", action="store_true", help="Redis restarts, and only that, and comes back empty"
    )
    words.add_argument("--write", action="store_true", help="play all three kinds of run, and write beats.md")
    words.add_argument("--keep", help="copy the logs, the journal and the ledger there")
    said = words.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started ends with this
    if not said.write:
        return 1 if play(said)[1] else 0
    played = {}
    for name, how in RUNS.items():
        played[name] = play(argparse.Namespace(**{**vars(said), "acks": "early", "lose_data": False, **how}))
    TABLE.write_text(table(said, {name: figures for name, (figures, _) in played.items()}))
    return 1 if any(bad for _, bad in played.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
