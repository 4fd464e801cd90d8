"""What a delivery's end is told by: signals and log records, and listeners that fail."""

import pytest

from qx_cache import digest

pytestmark = pytest.mark.worker
PERSON = "jane@example.org"
KEY = f"shop.capture:key:{PERSON}"


def reports(shop, event):
    return shop.until(lambda: shop.journal("log", qx_event=event), what=f"a log record {event}")


def test_listeners_that_raise_harm_nothing(shop_with):
    shop = shop_with(listeners_raise=True)
    shop.start()
    capture, nightly, losing = shop.tasks.capture, shop.tasks.nightly, shop.tasks.losing
    first = capture.delay("a", gate="go")
    shop.until(lambda: shop.journal("start", order="a"))
    second = capture.delay("a", gate="go")
    shop.until(lambda: shop.journal("deferred", id=second.id))
    shop.open("go")
    assert [["a"], ["a"]] == [first.get(timeout=20), second.get(timeout=20)]
    assert shop.journal("replayed", id=second.id)

    night = nightly.delay(gate="morning")
    shop.until(lambda: shop.journal("start", order="n"))
    assert "lock_held" == nightly.delay().get(timeout=20)["qx_skipped"]
    shop.open("morning")
    assert ["n"] == night.get(timeout=20)

    lost = losing.delay("b", "sleeps")
    shop.until(lambda: shop.journal("start", order="b"))
    for key in shop.redis.scan_iter("shop:idem:*losing*"):
        shop.redis.delete(key)
    assert "b" == lost.get(timeout=20)
    assert shop.journal("lost", id=lost.id)

    dying = shop.tasks.once_at_most.delay("c")
    with pytest.raises(Exception, match="left no result"):
        dying.get(timeout=20)
    assert shop.journal("interrupted", id=dying.id)

    rejected = shop.tasks.rejecting.delay("d")
    assert "d" == rejected.get(timeout=20)
    assert shop.journal("taken_over", id=rejected.id)
    assert 5 <= shop.log(0).count("a listener's own fault")
    shop.until(shop.idle)


def test_log_records_have_flat_fields_and_no_key_in_clear(shop):
    first = shop.tasks.capture.delay(PERSON)
    first.get(timeout=20)
    second = shop.tasks.capture.delay(PERSON)
    second.get(timeout=20)
    (replayed,) = reports(shop, "replayed")
    assert ("INFO", second.id, "shop.capture", "replayed", first.id) == tuple(
        replayed[name] for name in ("level", "task_id", "task_name", "outcome", "holder_task_id")
    )
    assert int(replayed["fencing_token"]) > 0
    assert digest(KEY.encode())[:16] == replayed["idempotency_key"]

    running = shop.tasks.single.delay(PERSON, gate="go")
    shop.until(lambda: shop.journal("start", order=PERSON, id=running.id))
    skipped = shop.tasks.single.delay(PERSON, gate="go")
    (record,) = reports(shop, "skipped")
    assert (skipped.id, running.id, "lock_held") == tuple(
        record[name] for name in ("task_id", "holder_task_id", "outcome")
    )
    assert "shop.single" == record["lock_name"]
    assert 16 == len(record["lock_key"])
    shop.open("go")
    running.get(timeout=20)
    assert PERSON not in str(shop.journal("log"))


def test_keys_are_logged_in_clear_where_that_is_asked_for(shop_with):
    shop = shop_with(qx_cache_log_keys=True)
    shop.start()
    for _ in range(2):
        shop.tasks.capture.delay(PERSON).get(timeout=20)
    (replayed,) = reports(shop, "replayed")
    assert KEY == replayed["idempotency_key"]


def test_a_lost_lease_is_an_error_with_its_fence(shop):
    result = shop.tasks.losing.delay("a", "sleeps")
    shop.until(lambda: shop.journal("start"))
    (key,) = shop.until(lambda: list(shop.redis.scan_iter("shop:idem:*")))
    shop.redis.delete(key)
    (lost,) = reports(shop, "lease_lost")
    (told,) = shop.until(lambda: shop.journal("lost"))
    assert ("ERROR", result.id, told["fence"]) == tuple(
        lost[name] for name in ("level", "task_id", "fencing_token")
    )
    assert "a" == result.get(timeout=20)
