"""Beat is watched as ever: Sentry's check-ins and OpenTelemetry's spans come from the leader alone."""

import time

import pytest
from beating import beats_of

pytestmark = pytest.mark.worker


@pytest.fixture
def watched(shop_with):
    def make(watched_by):
        shop = shop_with(
            name="timekeeper",
            imported=False,
            watched_by=watched_by,
            fast_since=time.time(),
            beat_max_loop_interval=0.1,
            qx_cache_beat_lock_ttl=2,
            task_ignore_result=True,
        )
        shop.start()
        return shop

    return make


def by(shop, beats, number, what):
    return shop.journal(what, pid=beats.pid(number))


def test_sentry_hears_of_the_leaders_ticks_and_of_no_standbys(watched):
    shop = watched("sentry")
    with beats_of(shop) as beats:
        leader, standby = beats.start(), beats.start()
        shop.until(lambda: len(by(shop, beats, leader, "check-in")) > 1, what="check-ins of the leader")
        assert [] == by(shop, beats, standby, "check-in")
        shop.until(lambda: len(shop.journal("tick")) == len(shop.journal("check-in")))
        beats.kill(leader)
        shop.until(lambda: by(shop, beats, standby, "check-in"), what="a check-in of the next leader")
        assert [standby] == beats.living()
        shop.until(lambda: len(shop.journal("tick")) == len(shop.journal("check-in")))
        assert {("minutely", "in_progress")} == {(row["slug"], row["status"]) for row in shop.journal("check-in")}
        ticks = [row["tick"] for row in shop.journal("tick")]
        assert len(ticks) == len(set(ticks))


def test_opentelemetry_has_a_span_of_each_dispatch_whose_trace_reaches_the_task(watched):
    shop = watched("opentelemetry")
    with beats_of(shop) as beats:
        leader, standby = beats.start(), beats.start()
        shop.until(lambda: len(by(shop, beats, leader, "span")) > 1, what="spans of the leader")
        assert [] == by(shop, beats, standby, "span")
        shop.until(lambda: len(shop.journal("tick")) == len(shop.journal("span")))
        beats.kill(leader)
        shop.until(lambda: by(shop, beats, standby, "span"), what="a span of the next leader")
        assert [standby] == beats.living()
        shop.until(lambda: len(shop.journal("tick")) == len(shop.journal("span")))
        assert {"apply_async/timekeeper.ticked"} == {row["name"] for row in shop.journal("span")}
        traces = {row["traced"].split("-")[1] for row in shop.journal("tick")}
        assert {row["trace"] for row in shop.journal("span")} == traces
        assert len(shop.journal("tick")) == len(traces)
