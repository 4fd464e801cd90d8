"""Tasks at definition, keys from arguments, and calls outside a worker."""

import enum
import ssl
import uuid
from datetime import date, timedelta
from decimal import Decimal

import pytest
from celery import Celery, Task
from hypothesis import given
from hypothesis import strategies as st

from qx_cache import InvalidValueError
from qx_cache._urls import read
from qx_cache_celery import IdempotentTask, KeyArgumentError, SingletonTask
from qx_cache_celery.backend import backend_url
from qx_cache_celery.identity import canonical, key_name
from qx_cache_celery.naming import lock_name
from qx_cache_celery.options import namespace


@pytest.fixture
def app():
    with Celery("shop", broker="memory://", set_as_current=False) as app:
        yield app


def define(app, base=IdempotentTask, **options):
    @app.task(base=base, shared=False, **options)
    def capture(order_id, amount=5, *, currency="EUR"):
        return [order_id, amount, currency]

    app.finalize()
    return app.tasks[capture.name]


def key(task, *args, **kwargs):
    return task.qx_options.makers["idempotency_key"].text(args, kwargs)


def test_a_template_that_names_no_argument_of_the_task_is_refused_at_definition(app):
    with pytest.raises(
        InvalidValueError, match=r"capture: idempotency_key names 'order'.*order_id, amount, currency"
    ):
        define(app, idempotency_key="{order}")


@pytest.mark.parametrize(
    "options",
    [
        {"idempotency_key": "constant"},
        {"idempotency_key": 5},
        {"idempotency_key": ["nothing"]},
        {"fingerprint": ["nothing"]},
        {"fingerprint": "words"},
        {"lease_ttl": 0},
        {"result_ttl": -1},
        {"heartbeat_interval": 0},
        {"lease_ttl": 10, "heartbeat_interval": 6},
        {"on_store_error": "ignore"},
    ],
)
def test_an_option_that_cannot_be_right_is_refused_at_definition_with_the_tasks_name(app, options):
    with pytest.raises(InvalidValueError, match="capture"):
        define(app, **options)


@pytest.mark.parametrize(
    ("base", "options", "words"),
    [
        (SingletonTask, {"idempotency_key": "{order_id}"}, "idempotency_key is an option of IdempotentTask"),
        (SingletonTask, {"tx": "default"}, "tx is an option of IdempotentTask"),
        (IdempotentTask, {"lock_key": []}, "lock_key is an option of SingletonTask"),
        (IdempotentTask, {"unique_on": ["order_id"]}, "lock_key is an option of SingletonTask"),
        (SingletonTask, {"lock_key": [], "unique_on": []}, "unique_on is another name of lock_key"),
        (IdempotentTask, {"lock_mode": "until_executed"}, "lock_mode is an option of SingletonTask"),
        (SingletonTask, {"on_duplicate": "raise"}, "nothing is claimed at publication"),
        (SingletonTask, {"claim_ttl": 60, "lock_mode": "while_executing"}, "nothing is claimed at publication"),
        (SingletonTask, {"lock_mode": "until_executing", "min_hold": 5}, "min_hold is of the lock .* has none"),
        (SingletonTask, {"lock_mode": "until_executing", "on_conflict": "defer"}, "on_conflict is of the lock"),
        (
            SingletonTask,
            {"lock_mode": "until_executed", "on_conflict": "keep_latest"},
            "'keep_latest' publishes every call and runs the newest, but lock_mode 'until_executed'",
        ),
        (SingletonTask, {"lock_mode": "executing"}, "lock_mode must be one of 'while_executing', 'until_exec"),
    ],
)
def test_options_that_make_no_sense_together_are_refused_with_a_sentence(app, base, options, words):
    with pytest.raises(InvalidValueError, match=words):
        define(app, base, **options)


def test_late_acks_are_forced_for_idempotent_tasks_and_left_alone_for_singletons(app):
    task = define(app, acks_late=False)
    assert (True, True) == (task.acks_late, task.reject_on_worker_lost)
    assert not define(Celery("other", broker="memory://", set_as_current=False), SingletonTask).acks_late


def test_our_options_shadow_nothing_of_celery():
    ours = {name for base in (IdempotentTask, SingletonTask) for name in vars(base) if not name.startswith("_")}
    assert {"abstract", "apply_async", "on_bound", "replace", "retry"} == ours & set(dir(Task))


def test_keys_by_template_names_and_callable(app):
    assert "42" == key(define(app, idempotency_key="{order_id}"), 42)
    two = define(Celery("a", broker="memory://", set_as_current=False), idempotency_key="{order_id}:{currency}")
    assert "a%3Ab:EUR" == key(two, "a:b")
    names = define(Celery("b", broker="memory://", set_as_current=False), idempotency_key=["order_id", "amount"])
    assert key(names, 1) == key(names, order_id=1, amount=5) != key(names, "1")
    made = define(
        Celery("c", broker="memory://", set_as_current=False), idempotency_key=lambda order_id, *_: f"o{order_id}"
    )
    assert "o7" == key(made, 7)


@pytest.mark.parametrize("bad", [None, "", [], {}, 1.5, object()])
def test_an_argument_that_cannot_be_part_of_a_key_is_refused_loudly(app, bad):
    with pytest.raises(KeyArgumentError, match="capture"):
        key(define(app, idempotency_key="{order_id}"), bad)


def test_a_new_parameter_with_a_default_changes_no_key(app):
    task = define(app, SingletonTask)
    assert lock_name(task, (1,), {}) == lock_name(task, (1, 5), {"currency": "EUR"})
    assert lock_name(task, (1,), {}) != lock_name(task, (1, 6), {})
    with pytest.raises(KeyArgumentError, match="order_id"):
        lock_name(task, (object(),), {})


def test_direct_and_eager_calls_pass_through_untouched(app):
    task = define(app, idempotency_key="{order_id}")
    assert [1, 5, "EUR"] == task(1)
    assert [1, 5, "EUR"] == task.apply((1,)).get()
    task.lease.ensure()
    assert (None, True, float("inf")) == (task.lease.fence, task.lease.valid(), task.lease.remaining())
    app.conf.task_always_eager = True
    assert [2, 5, "EUR"] == task.delay(2).get()


def test_the_redis_is_found_in_this_order(app, monkeypatch):
    with pytest.raises(InvalidValueError, match=r"backend_url.*QX_CACHE__URL.*result_backend.*broker_url"):
        backend_url(app)
    for name, url in [
        ("broker_url", "redis://broker"),
        ("result_backend", "rediss://backend"),
        ("env", "redis://env"),
        ("qx_cache_backend_url", "redis://own"),
    ]:
        if name == "env":
            monkeypatch.setenv("QX_CACHE__URL", url)
        else:
            app.conf[name] = url
        assert url == backend_url(app)
    assert "shop" == namespace(app)
    app.conf.qx_cache_namespace = "mine"
    assert "mine" == namespace(app)


@pytest.mark.parametrize(
    ("conf", "url"),
    [
        (
            {
                "broker_url": "sentinel://:pw@a:1/0;sentinel://b:2/0",
                "broker_transport_options": {"master_name": "m", "sentinel_kwargs": {"password": "s"}},
            },
            "sentinel://:pw@a:1/0;sentinel://b:2/0?master_name=m&sentinel_password=s&sentinel_ssl=false",
        ),
        (
            {
                "broker_url": "sentinel://a:1",
                "broker_transport_options": {"master_name": "m"},
                "broker_use_ssl": {"ssl_ca_certs": "/ca.pem"},
            },
            "sentinel://a:1?master_name=m&sentinel_ssl=false&ssl=true&ssl_ca_certs=%2Fca.pem",
        ),
        (
            {
                "result_backend": "redis://b/1",
                "redis_backend_use_ssl": {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_ca_certs": None},
            },
            "rediss://b/1?ssl_cert_reqs=none",
        ),
        ({"broker_url": "rediss://b/1?ssl_cert_reqs=CERT_NONE", "broker_use_ssl": True}, None),
    ],
)
def test_what_celery_keeps_beside_its_urls_is_taken_along(app, conf, url):
    app.conf.update(conf)
    assert (url or conf["broker_url"]) == backend_url(app)
    read(backend_url(app))


class Colour(enum.Enum):
    RED = 1


def test_canonical_text_tells_types_apart():
    values = [None, True, 1, 1.0, "1", b"1", [1], {1}, {"1": 1}, {1: 1}, Decimal(1), uuid.UUID(int=1), Colour.RED]
    values += [date(2026, 1, 1), timedelta(1), float("nan"), "", [], {}]
    assert len(values) == len({canonical(value) for value in values})
    assert canonical((1, 2)) == canonical([1, 2])
    with pytest.raises(TypeError, match="object"):
        canonical(object())


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(plain, plain)
def test_canonical_text_is_equal_just_for_equal_values(one, other):
    same = repr(one) == repr(other) or (one == other and canonical(one) == canonical(other))
    assert same == (canonical(one) == canonical(other))


def test_the_name_of_a_record_keeps_its_marks_apart():
    names = {
        key_name("t", "key", "a"),
        key_name("t", "id", "a"),
        key_name("t", "key", "a", nesting=1),
        key_name("t", "key", "a", group_index=1),
        key_name("t:key", "key", "a"),
    }
    assert 5 == len(names)
