"""The visibility heartbeat: what a living worker holds is not delivered again, what a dead one held soon is."""

import signal
import time

import kombu
import pytest
import redis
import servers

from qx_cache.embedded import start_server
from qx_cache_celery.visibility import refresh

pytestmark = pytest.mark.worker
VISIBILITY_SECONDS = 2


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_run_and_an_eta_longer_than_the_timeout_start_once(shop_with, pool):
    shop = shop_with(visibility_timeout=VISIBILITY_SECONDS)
    shop.start(pool=pool), shop.start(pool=pool)
    recorded = shop.tasks.by_id.apply_async(("recorded",), countdown=3 * VISIBILITY_SECONDS)
    long_run = shop.tasks.plain.delay("long", seconds=2.5 * VISIBILITY_SECONDS)
    late = shop.tasks.plain.apply_async(("late",), countdown=3 * VISIBILITY_SECONDS)
    assert ["long"] == long_run.get(timeout=30)
    assert ["late"] == late.get(timeout=30)
    assert 1 == len(shop.journal("start", order="long"))
    assert ["recorded"] == recorded.get(timeout=30)
    assert 1 == len(shop.journal("start", order="late"))
    assert 1 == len(shop.journal("start", order="recorded"))
    assert [] == shop.journal("deferred")
    shop.until(shop.idle)


def test_each_queue_of_a_worker_is_held(shop_with):
    shop = shop_with(visibility_timeout=VISIBILITY_SECONDS)
    shop.start(queues="celery,other"), shop.start(queues="celery,other")
    runs = [shop.tasks.plain.apply_async((q,), {"seconds": 5}, queue=q) for q in ("celery", "other")]
    assert [["celery"], ["other"]] == [run.get(timeout=30) for run in runs]
    assert 2 == len(shop.journal("start"))


def test_turned_off_the_broker_delivers_again(shop_with):
    """What the test above would see without it: so that it can fail."""
    shop = shop_with(visibility_timeout=VISIBILITY_SECONDS, qx_cache_visibility_heartbeat=False)
    shop.start(), shop.start()
    shop.tasks.plain.delay("long", seconds=2.5 * VISIBILITY_SECONDS)
    shop.until(lambda: len(shop.journal("start", order="long")) > 1, seconds=15, what="a second delivery")


def test_a_killed_workers_messages_are_back_after_the_timeout(shop_with):
    shop = shop_with(visibility_timeout=3, qx_cache_lease_ttl=3)
    shop.start(), shop.start()
    shop.tasks.by_id.delay("a", gate="go")
    first = shop.until(lambda: shop.journal("start"))[0]
    time.sleep(3)  # held for longer than the timeout, by a living worker
    assert 1 == len(shop.journal("start"))
    killed_at = time.time()
    shop.group(shop.running_in(first), signal.SIGKILL)
    second = shop.until(lambda: shop.journal("start")[1:], seconds=15)[0]
    assert second["at"] - killed_at < 6
    shop.open("go")
    shop.until(shop.idle)


@pytest.mark.parametrize("options", [{}, {"global_keyprefix": "mine:"}, {"unacked_index_key": "held"}])
def test_what_is_held_gets_a_fresh_score_in_one_command_and_what_was_acknowledged_stays_away(options):
    with start_server() as server, redis.Redis.from_url(server.url) as looks:
        held_ones_are_refreshed(server.broker_url, options, looks)


@pytest.mark.servers
def test_what_is_held_is_refreshed_at_the_master_that_sentinels_name():
    with servers.sentinels(servers.redis_7()) as (master, _, watchers), master.raw() as looks:
        url = ";".join(f"sentinel://{watcher.address}" for watcher in watchers)
        held_ones_are_refreshed(url, {"master_name": "mymaster"}, looks)


def held_ones_are_refreshed(url, options, looks):
    """Take three messages, acknowledge one, make the others old, refresh."""
    index = options.get("global_keyprefix", "") + options.get("unacked_index_key", "unacked_index")
    with kombu.Connection(url, transport_options=options) as connection:
        channel = connection.channel()
        channel.basic_qos(0, 10, False)
        queue = kombu.Queue("q", channel=channel)
        queue.declare()
        producer = kombu.Producer(channel)
        for number in range(3):
            producer.publish({"n": number}, routing_key="q")
        held = []
        with kombu.Consumer(channel, [queue], callbacks=[lambda _, message: held.append(message)]):
            deadline = time.monotonic() + 10
            while len(held) < 3:
                assert time.monotonic() < deadline
                connection.drain_events(timeout=5)
            held[0].ack()

            for tag in looks.zrange(index, 0, -1):
                looks.zadd(index, {tag: 1})
            looks.config_resetstat()
            assert 2 == refresh(channel)
            assert 1 == looks.info("commandstats")["cmdstat_zadd"]["calls"]
            scores = [score for _, score in looks.zrange(index, 0, -1, withscores=True)]
            assert 2 == len(scores)
            assert all(abs(score - time.time()) < 5 for score in scores)
            for message in held[1:]:
                message.ack()
