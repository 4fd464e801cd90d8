"""The table of docs/singleton.md, row by row: where the known helpers hang, lose tasks or leave locks for hours.

Each cell is made of what was seen on real workers, and compared with the docs; ``QX_WRITE_DOCS=1`` writes it.
"""

import os
import signal
import time
from pathlib import Path

import pytest
from celery import chord
from conftest import Shop

from qx_cache.embedded import start_server

pytestmark = pytest.mark.worker
PAGE = Path(__file__).parents[2] / "docs" / "singleton.md"
MODES = ("while_executing", "until_executed")
SETTINGS = {"result_expires": 600}
SEEN = {}


@pytest.fixture(scope="module")
def peers_with(tmp_path_factory):
    """Make a shop; the module's worker and those of single rows are apart."""
    made = []

    def make(**settings):
        server = start_server()
        shop = Shop(tmp_path_factory.mktemp("peers"), server, {**SETTINGS, **settings}, "peers")
        made.append((shop, server))
        return shop

    yield make
    for shop, server in made:
        shop.stop()
        server.stop()


@pytest.fixture(scope="module")
def peers(peers_with):
    """One worker of three processes for all rows that leave it alive."""
    peers = peers_with()
    peers.start(concurrency=3)
    return peers


class Case:
    """One row in one mode: its tasks, its order, and what came of it."""

    def __init__(self, shop, mode, order):
        self.shop, self.mode, self.order = shop, mode, order
        self.gate = f"gate-{order}-{mode}"

    def task(self, acks="early"):
        return self.shop.tasks.named(self.mode, acks)

    def publish(self, acks="early", *, options=None, **how):
        return self.task(acks).apply_async((self.order,), how, **(options or {}))

    def open(self):
        self.shop.open(self.gate)

    def runs(self):
        return self.shop.journal("start", order=self.order)

    def until_running(self, number=1):
        return self.shop.until(lambda: len(self.runs()) >= number and self.runs()[-1], what=f"run {number}")

    def kill_child(self):
        os.kill(self.until_running()["pid"], signal.SIGKILL)

    def told(self, *results, acks="early"):
        """Runs, how many at once, states; and nothing is left behind."""
        states = [self._state(result) for result in results]
        info = self.shop.until(lambda: free(self.task(acks).lock_info(self.order)), seconds=10, what="a free lock")
        assert "" == info.queued
        number = len(self.runs())
        runs = "1 run" if number == 1 else f"{number} runs, {self._at_once()} at once"
        same = " (one result)" if len({result.id for result in results}) < len(results) else ""
        return f"{runs}; {', '.join(states)}{same}"

    def _state(self, result):
        self.shop.until(result.ready, seconds=40, what=f"an end of {result.id}")
        value = result.result
        return "skipped" if isinstance(value, dict) and "qx_skipped" in value else result.state

    def _at_once(self):
        """The most runs under way at a time; one that was killed has no time of its own."""
        over = {run_of(row): row["at"] for row in self.shop.journal("over", order=self.order)}
        spans = [(row["at"], over.get(run_of(row), row["at"])) for row in self.runs()]
        return max(sum(begun < at < ended for begun, ended in spans) for at, _ in spans) + 1


def run_of(row):
    return row["id"], row["pid"], row["retries"]


def free(info):
    return info if info.state == "free" else None


def another_while_one_runs(case):
    first = case.publish(gate=case.gate)
    case.until_running()
    second = case.publish()
    case.shop.until(lambda: second.ready() or second.id == first.id)
    case.open()
    return case.told(first, second)


def again_after_the_first_has_ended(case):
    first = case.publish()
    first.get(timeout=20)
    return case.told(first, case.publish())


def positional_and_by_keyword(case):
    first = case.publish(gate=case.gate)
    case.until_running()
    second = case.task().apply_async(kwargs={"order": case.order})
    case.shop.until(lambda: second.ready() or second.id == first.id)
    case.open()
    return case.told(first, second)


def published_by_send_task(case):
    first = case.publish(gate=case.gate)
    case.until_running()
    second = case.shop.tasks.app.send_task(case.task().name, (case.order,))
    case.shop.until(second.ready)
    case.open()
    return case.told(first, second)


def retried_by_itself(case):
    return case.told(case.publish(retry=True))


def failed(case):
    first = case.publish(fail=1)
    case.shop.until(first.ready)
    return case.told(first, case.publish())


def child_killed_early_acks(case):
    first = case.publish(gate="never")
    case.kill_child()
    case.shop.until(first.ready)
    return case.told(first, case.publish())


def child_killed_late_acks(case):
    first = case.publish("late", gate=case.gate)
    case.kill_child()
    case.until_running(2)
    case.open()
    return case.told(first, acks="late")


def child_killed_retry_on_worker_lost(case):
    first = case.publish("again", gate=case.gate)
    case.kill_child()
    case.until_running(2)
    case.open()
    return case.told(first, acks="again")


def hard_time_limit(case):
    first = case.publish(gate="never", options={"time_limit": 1})
    case.shop.until(first.ready)
    case.shop.until(lambda: free(case.task().lock_info(case.order)), seconds=10, what="a free lock")
    return case.told(first, case.publish())


def revoked_before_it_starts(case):
    first = case.publish(options={"countdown": 2})
    case.shop.until(lambda: first.id in case.shop.log(0))
    first.revoke()
    case.shop.until(first.ready)
    return case.told(first, case.publish())


def revoked_with_terminate(case):
    first = case.publish(gate="never")
    case.until_running()
    first.revoke(terminate=True)
    case.shop.until(first.ready)
    case.shop.until(lambda: free(case.task().lock_info(case.order)), seconds=10, what="a free lock")
    return case.told(first, case.publish())


def expired(case):
    first = case.publish(options={"expires": 0.5, "countdown": 1})
    case.shop.until(first.ready)
    return case.told(first, case.publish())


def two_equal_members_of_a_chord(case):
    member = case.task().si(case.order, seconds=0.3)
    return case.told(chord([member, member])(case.shop.tasks.collect.s()))


def two_chains_with_the_same_first_task(case):
    tail = case.shop.tasks.tail
    chains = [(case.task().si(case.order, seconds=0.3) | tail.s(f"{case.mode} {i}")).delay() for i in range(2)]
    told = case.told(*chains)
    tails = {row["name"] for row in case.shop.journal("tail") if row["name"].startswith(case.mode)}
    return f"{told}; {len(tails)} tails"


def the_run_is_longer_than_the_lock_lives(case):
    first = case.publish("brief", gate=case.gate)
    begun = case.until_running()["at"]
    case.shop.until(lambda: time.time() - begun > 4, what="two and a half lives")
    second = case.publish("brief")
    case.shop.until(lambda: second.ready() or second.id == first.id)
    case.open()
    return case.told(first, second, acks="brief")


ROWS = {
    "another task while one runs": another_while_one_runs,
    "another one after the first has ended": again_after_the_first_has_ended,
    "`f(1)`, then `f(x=1)`": positional_and_by_keyword,
    "published by `send_task`, while one runs": published_by_send_task,
    "`self.retry()`": retried_by_itself,
    "failed, then another": failed,
    "child killed, early acks, then another": child_killed_early_acks,
    "child killed, late acks": child_killed_late_acks,
    "child killed, `retry_on_worker_lost`": child_killed_retry_on_worker_lost,
    "hard time limit, then another": hard_time_limit,
    "revoked before it starts, then another": revoked_before_it_starts,
    "revoked with terminate, then another": revoked_with_terminate,
    "expired, then another": expired,
    "two equal members of a chord": two_equal_members_of_a_chord,
    "two chains with the same first task": two_chains_with_the_same_first_task,
    "longer than `lock_ttl`, and another": the_run_is_longer_than_the_lock_lives,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row", ROWS)
def test_row(peers, row, mode):
    case = Case(peers, mode, f"{list(ROWS).index(row)}-{mode}")
    compare(row, mode, ROWS[row](case))


def eta_longer_than_every_timeout(peers_with, mode):
    """With the broker's timeout, the lock's life and the claim's shorter than the countdown."""
    shop = peers_with(visibility_timeout=2, qx_cache_claim_ttl=1)
    shop.start()
    case = Case(shop, mode, "eta")
    first = case.publish("brief", options={"countdown": 6})
    until = time.time() + 4
    shop.until(lambda: time.time() > until)
    second = case.publish("brief", options={"countdown": 2.5})
    return case.told(first, second, acks="brief")


def redelivered_while_it_runs(peers_with, mode):
    """The broker's timeout passes during the run, as nothing refreshes it."""
    shop = peers_with(visibility_timeout=1, qx_cache_visibility_heartbeat=False)
    shop.start()
    case = Case(shop, mode, "redelivered")
    first = case.publish("late", gate=case.gate)
    case.until_running()
    shop.until(lambda: shop.journal("deferred", id=first.id), seconds=40, what="a second delivery")
    case.open()
    told = case.told(first, acks="late")
    shop.until(shop.idle, seconds=40, what="no copy")
    return told


def whole_worker_killed_late_acks(peers_with, mode):
    shop = peers_with(visibility_timeout=2)
    shop.start()
    case = Case(shop, mode, "killed")
    first = case.publish("brief", gate=case.gate)
    case.until_running()
    shop.group(shop.workers[0], signal.SIGKILL)
    shop.start()
    case.until_running(2)
    case.open()
    return case.told(first, acks="brief")


def deploy(peers_with, mode):
    """A warm shutdown: the lock is kept to the end of the run."""
    shop = peers_with()
    shop.start()
    case = Case(shop, mode, "deploy")
    first = case.publish(gate=case.gate)
    case.until_running()
    shop.workers[0].terminate()
    shop.until(lambda: "Warm shutdown" in shop.log(0))
    asked_no_more = (
        time.time() + 2
    )  # its last BRPOP, of one second, may still be given a message, which it would keep
    shop.until(lambda: time.time() > asked_no_more)
    shop.start()
    second = case.publish()
    shop.until(lambda: second.ready() or second.id == first.id)
    case.open()
    return case.told(first, second)


def store_down_at_publish(peers_with, mode):
    with start_server() as records:
        shop = peers_with(qx_cache_backend_url=records.url, qx_cache_on_store_error="run")
        case = Case(shop, mode, "down")
    first = case.publish()  # the store is gone
    shop.start()
    shop.until(first.ready, seconds=60)
    return f"{len(case.runs())} run; {first.state}"


APART = {
    "ETA longer than every timeout, and another": eta_longer_than_every_timeout,
    "delivered again while it runs": redelivered_while_it_runs,
    "whole worker killed, late acks": whole_worker_killed_late_acks,
    "deploy (warm shutdown), and another": deploy,
    "store down at publish": store_down_at_publish,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row", APART)
def test_row_apart(peers_with, row, mode):
    compare(row, mode, APART[row](peers_with, mode))


def compare(row, mode, seen):
    """With the docs, or write it there."""
    SEEN[row, mode] = seen
    if not os.environ.get("QX_WRITE_DOCS"):
        assert documented()[row, mode] == seen


def documented():
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    start = cells.index(["what happens", *(f"`{mode}`" for mode in MODES)])
    rows = [row for row in cells[start + 1 :] if len(row) == 3]
    return {(row[0], mode): cell for row in rows for mode, cell in zip(MODES, row[1:], strict=True)}


@pytest.fixture(scope="module", autouse=True)
def page():
    """Write the table anew where that is asked for."""
    yield
    if os.environ.get("QX_WRITE_DOCS"):
        rows = ["| what happens | " + " | ".join(f"`{mode}`" for mode in MODES) + " |", "|---|---|---|"]
        rows += [f"| {row} | {SEEN[row, MODES[0]]} | {SEEN[row, MODES[1]]} |" for row in (*ROWS, *APART)]
        before, _, rest = PAGE.read_text().partition("<!-- rows -->\n")
        PAGE.write_text(
            f"{before}<!-- rows -->\n" + "\n".join(rows) + "\n<!-- end -->" + rest.partition("<!-- end -->")[2]
        )
