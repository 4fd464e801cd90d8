"""``on_conflict="keep_latest"``: the newest runs, whatever is killed; all others end with a marker or a run."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import servers

from qx_cache import InvalidValueError

pytestmark = pytest.mark.worker
HERE = Path(__file__).parent
FENCE = "unique:lock:1:{unique.numbered:key:}:f"


@pytest.fixture
def unique(shop_with):
    unique = shop_with(name="unique")
    unique.start()
    return unique


def test_of_what_is_published_while_one_runs_the_newest_runs_next_and_the_others_end_with_a_marker(unique):
    task = unique.tasks.newest
    first = task.delay("first", gate="go")
    unique.until(lambda: unique.journal("start"))
    later = [task.delay(f"later {i}") for i in range(5)]
    for one in later[:-1]:
        marker = one.get(timeout=20)
        assert ("superseded", first.id) == (marker["qx_skipped"], marker["holder"])
    unique.open("go")
    assert [["first"], ["later 4"]] == [first.get(timeout=20), later[-1].get(timeout=20)]
    assert ["first", "later 4"] == [row["order"] for row in unique.journal("start")]
    assert 4 == len(unique.journal("skipped", reason="superseded"))


def test_a_retry_of_an_older_one_yields_to_a_newer_one(unique):
    task = unique.tasks.newest
    first = task.delay("first", gate="go", retry=True)
    unique.until(lambda: unique.journal("start"))
    second = task.delay("second")
    unique.open("go")
    assert "superseded" == first.get(timeout=20)["qx_skipped"]
    assert ["second"] == second.get(timeout=20)
    assert ["first", "second"] == [row["order"] for row in unique.journal("start")]


@pytest.mark.parametrize("headers", [None, {"mine": 1}])
def test_a_retry_of_one_without_a_number_supersedes_nothing(unique, headers):
    """As of one that another program has sent."""
    task = unique.tasks.newest
    how = {"gate": "go", "retry": True, "retry_headers": headers}
    first = unique.tasks.app.send_task(task.name, ("first",), how)
    unique.until(lambda: unique.journal("start"))
    second = task.delay("second")
    unique.until(lambda: unique.journal("deferred", id=second.id))
    unique.open("go")
    assert ["second"] == second.get(timeout=30)
    assert ["first"] == first.get(timeout=30)


def test_a_number_goes_along_with_a_retry_that_has_headers_of_its_own(unique):
    task = unique.tasks.newest
    first = task.delay("first", gate="go", retry=True, retry_headers={"mine": 1})
    unique.until(lambda: unique.journal("start"))
    second = task.delay("second")
    unique.open("go")
    assert "superseded" == first.get(timeout=20)["qx_skipped"]
    assert ["second"] == second.get(timeout=20)


def test_a_task_that_is_given_anothers_headers_is_not_superseded_for_that(unique):
    task = unique.tasks.newest
    old = task.delay("old")
    assert ["old"] == old.get(timeout=20)
    assert ["new"] == task.delay("new").get(timeout=20)
    passed_on = task.apply_async(("third",), headers={"qx_number": f"1 {old.id}"})
    assert ["third"] == passed_on.get(timeout=20)


def test_with_min_hold_a_burst_makes_two_runs(unique):
    task = unique.tasks.debounced
    burst = [task.delay(f"b{i}") for i in range(10)]
    assert ["b9"] == burst[-1].get(timeout=20)
    unique.until(lambda: all(one.ready() for one in burst))
    starts = unique.journal("start")
    assert 1 <= len(starts) <= 2
    assert len(starts) == 1 or starts[1]["at"] - starts[0]["at"] >= 1


def test_a_call_may_ask_for_it_and_a_task_that_answers_with_an_older_one_refuses(unique):
    tasks = unique.tasks
    holder = tasks.executed.apply_async(("a",), {"gate": "go"})
    with pytest.raises(InvalidValueError, match="'keep_latest' publishes every call"):
        tasks.executed.apply_async(("b",), on_conflict="keep_latest")
    unique.open("go")
    assert ["a"] == holder.get(timeout=20)
    assert 1 == tasks.noop.apply_async((1,), on_conflict="keep_latest", ignore_result=False).get(timeout=20)


BROKERS = ["redis", pytest.param("rabbitmq", marks=pytest.mark.servers)]


@pytest.fixture(params=BROKERS)
def crowd(request, shop_with):
    """Two workers of one process each."""
    settings = {}
    if request.param == "rabbitmq":
        settings = {
            "broker_url": request.getfixturevalue("rabbitmq_url"),
            "broker_transport_options": {"confirm_publish": True},
        }
    crowd = shop_with(name="unique", visibility_timeout=3, **settings)
    for _ in range(2):
        crowd.start(concurrency=1)
    return crowd


@pytest.fixture(scope="module")
def rabbitmq_url():
    with servers.rabbitmq() as url:
        yield url


@contextlib.contextmanager
def publishing(*each):
    """A process for each of these arguments."""
    processes = [subprocess.Popen([sys.executable, "publisher.py", *arguments], cwd=HERE) for arguments in each]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_two_thousand_from_four_publishers_with_one_and_a_worker_killed(crowd):
    victim = standing(crowd)
    with publishing(["endless"], ["p1", "650"], ["p2", "650"], ["p3", "650"]) as (endless, *others):
        crowd.until(lambda: published_by("endless", crowd) >= 100, seconds=60, what="100 published")
        endless.kill()
        crowd.group(crowd.running_in(victim), signal.SIGKILL)
        killed = victim["id"], time.time()
        for publisher in others:
            publisher.wait(timeout=100)
    crowd.start(concurrency=1)
    published = {row["id"] for row in crowd.journal("published")} | {victim["id"]}
    assert len(published) > 2000

    states = {}
    crowd.until(lambda: not unfinished(crowd, published, states), seconds=60, what="an end of each")
    assert {"SUCCESS"} == {state for state, _ in states.values()}
    runs = {row["id"] for row in crowd.journal("end")}
    wrong = [one for one, (_, result) in states.items() if not (one in runs or "qx_skipped" in result)]
    assert [] == wrong

    latest = int(crowd.redis.hget(FENCE, "l"))  # published, if not noted, by the one that was killed
    crowd.until(lambda: crowd.journal("end")[-1]["number"] >= latest, what="the run of the newest")
    assert crowd.journal("end")[-1]["number"] == max(row["number"] for row in crowd.journal("start"))
    assert [] == overlaps(crowd, killed)


def standing(crowd):
    """A body that stands until its worker is killed; begun before the crowd, in which none need be the newest."""
    crowd.tasks.numbered.delay("victim")
    (victim,) = crowd.until(lambda: crowd.journal("start"), what="the body that stands")
    return victim


def published_by(name, crowd):
    return sum(row["order"].startswith(name) for row in crowd.journal("published"))


def unfinished(crowd, published, states):
    """Those of which the result backend knows no end yet; the ends of all others are added to ``states``."""
    left = [one for one in published if one not in states]
    for one, blob in zip(left, crowd.redis.mget([f"celery-task-meta-{one}" for one in left]), strict=True):
        meta = json.loads(blob) if blob else {}
        if meta.get("status") in {"SUCCESS", "FAILURE", "REVOKED"}:
            states[one] = (meta["status"], meta["result"])
    return [one for one in published if one not in states]


def overlaps(crowd, killed):
    """Runs that began while another was under way."""
    found, until = [], 0.0
    ends = {(row["id"], row["pid"]): row["at"] for row in crowd.journal("end")}
    for row in sorted(crowd.journal("start"), key=lambda row: row["at"]):
        if row["at"] < until:
            found.append(row)
        until = ends.get((row["id"], row["pid"]), killed[1] if row["id"] == killed[0] else row["at"])
    return found
