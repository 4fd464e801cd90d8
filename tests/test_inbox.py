"""The inbox's table on SQLite and PostgreSQL, and what ``tx`` may be, without workers."""

import signal
import subprocess
import sys
import threading
from datetime import timedelta

import pytest
from celery import Celery
from sqlalchemy import create_engine, event, inspect, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from qx_cache import InvalidValueError
from qx_cache_celery import IdempotentTask
from qx_cache_celery.inbox import create_inbox, inbox_ddl, sweep_inbox
from qx_cache_celery.inbox.database import database_of
from qx_cache_celery.inbox.errors import Fault, fault_of
from qx_cache_celery.inbox.rows import Entry, Inbox

ENTRY = Entry(fence=1, attempt=1, retries=0, holder="h", fingerprint="-")


@pytest.fixture
def engine(database_url):
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def inbox(engine):
    create_inbox(engine)
    create_inbox(engine)  # safe to repeat
    return Inbox(database_of(engine), "app", wait_seconds=0.2)


@pytest.fixture
def app():
    with Celery("books", broker="memory://", set_as_current=False) as app:
        yield app


def define(app, **options):
    @app.task(base=IdempotentTask, shared=False, bind=True, **options)
    def capture(self, order):
        return order

    app.finalize()
    return app.tasks[capture.name]


def run(inbox, key, entry=ENTRY, **ends):
    with inbox.database.begin() as opened:
        found = inbox.enter(opened, key, entry, takes_over=True)
        if found is None:
            inbox.finish(opened, key, entry, **{"result": b"r", "staged": None, **ends})
        return found


def test_the_first_who_enters_works_and_the_others_see_its_end(inbox):
    assert run(inbox, "k") is None
    found = run(inbox, "k")
    assert ("done", b"r", None, 1) == (found.state, found.result, found.staged, found.fence)
    assert 0 <= found.age_seconds < 10
    assert run(inbox, "other") is None
    assert inbox.look("none") is None


def test_who_meets_an_open_transaction_waits_so_long_and_no_longer(inbox, engine):
    with inbox.database.begin() as first:
        assert inbox.enter(first, "k", ENTRY, takes_over=True) is None
        with pytest.raises(OperationalError) as caught:
            run(inbox, "k")
        assert Fault.LOCKED is fault_of(caught.value)
        with pytest.raises(OperationalError) as caught:
            inbox.settle("k", ENTRY, "unknown", None)
        assert Fault.LOCKED is fault_of(caught.value)
    assert "running" == inbox.look("k").state
    if engine.dialect.name == "postgresql":
        with inbox.database.begin() as opened:
            inbox.enter(opened, "l", ENTRY, takes_over=True)
            assert [("0",)] == opened.execute("SELECT current_setting('lock_timeout')", {})


class TooLongError(Exception):
    """As a soft time limit, it may come from outside, within a query."""


def test_what_ends_a_query_from_outside_is_told_and_not_the_drivers_trouble(inbox, engine):
    if engine.dialect.name == "sqlite":
        pytest.skip("its driver sees to signals when the query is over")

    def strike(*_):
        raise TooLongError

    before = signal.signal(signal.SIGUSR1, strike)
    alarm = threading.Timer(1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))
    try:
        alarm.start()
        with pytest.raises(TooLongError), inbox.database.begin() as opened:
            opened.session.execute(text("SELECT pg_sleep(20)"))
    finally:
        alarm.join()
        signal.signal(signal.SIGUSR1, before)
    assert run(inbox, "k") is None


def test_an_interrupted_row_is_taken_over_by_one(inbox):
    with inbox.database.begin() as opened:
        inbox.enter(opened, "k", ENTRY, takes_over=True)
    second = Entry(fence=2, attempt=1, retries=0, holder="h2", fingerprint="-")
    with inbox.database.begin() as opened:
        assert "running" == inbox.enter(opened, "k", second, takes_over=False).state
    assert run(inbox, "k", second) is None
    row = inbox.look("k")
    assert ("done", 2, 2, "h2") == (row.state, row.fence, row.attempt, row.holder)


def test_what_is_settled_by_hand_does_not_undo_an_end(inbox):
    assert inbox.settle("k", ENTRY, "unknown", None)
    assert inbox.settle("k", ENTRY, "done", b"by hand")
    assert not inbox.settle("k", ENTRY, "unknown", None)
    assert b"by hand" == inbox.look("k").result
    assert not inbox.forget("k", fence=9)
    assert inbox.forget("k", fence=1)
    assert inbox.look("k") is None


@pytest.mark.parametrize("key", ["x" * 300, "line\nfeed", "nul\0", "é" * 200])
def test_any_key_has_its_row(inbox, key):
    assert run(inbox, key) is None
    assert run(inbox, key + "y") is None
    assert "done" == run(inbox, key).state


def test_the_ddl_in_text_and_djangos_migration_make_the_same_table(engine):
    script = inbox_ddl(engine.dialect.name)
    with engine.begin() as connection:
        for statement in script.split(";\n")[:-1]:
            connection.execute(text(statement))
    by_text = _shape(engine)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE qx_inbox"))
    code = (
        "import sys, django\nfrom django.conf import settings\nsys.path.insert(0, 'tests/workers')\n"
        "from django_url import as_django\n"
        f"settings.configure(DATABASES={{'default': as_django({str(engine.url)!r})}}, "
        "INSTALLED_APPS=['qx_cache_celery.inbox.django'])\ndjango.setup()\n"
        "from django.core.management import call_command\ncall_command('migrate', 'qx_inbox', verbosity=0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert by_text == _shape(engine)


def _shape(engine):
    looked = inspect(engine)
    columns = {one["name"]: (_kind(one["type"]), one["nullable"]) for one in looked.get_columns("qx_inbox")}
    indexes = {one["name"]: one["column_names"] for one in looked.get_indexes("qx_inbox")}
    primary = looked.get_pk_constraint("qx_inbox")["constrained_columns"]
    return columns, {name: found for name, found in indexes.items() if "like" not in name}, primary


def _kind(found):
    return type(found).__name__, getattr(found, "length", None)


def test_a_sweep_deletes_what_is_past_retention_in_batches(app, inbox, engine):
    define(app, tx=engine, result_ttl=60)
    for number in range(25):
        run(inbox, f"old {number}")
    with engine.begin() as connection:
        connection.execute(text("UPDATE qx_inbox SET at_ms = at_ms - 120000"))
    run(inbox, "new")
    statements = []
    event.listen(engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
    assert 25 == sweep_inbox(app, retention=timedelta(seconds=100), batch=10)
    assert 4 == sum("DELETE" in one for one in statements)
    assert inbox.look("new") is not None
    assert 0 == sweep_inbox(app, retention=100)
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            connection.execute(text("SET enable_seqscan = off"))
            plan = connection.execute(text(f"EXPLAIN {inbox._statements.sweep}"), {"age_ms": 1, "batch": 9})
            assert "qx_inbox_at_ms" in str(plan.all())


def test_a_sweep_that_would_delete_what_can_still_be_asked_for_is_refused(app, engine):
    define(app, tx=engine, result_ttl=60)
    with pytest.raises(InvalidValueError, match=r"retention 59 s is below the result_ttl of task .*capture, 60 s"):
        sweep_inbox(app, retention=59)


@pytest.mark.parametrize(
    "wrong", [5, "", object(), print, Session, create_async_engine("postgresql+psycopg://nobody@nowhere/none")]
)
def test_what_can_be_no_tx_is_refused_at_definition(app, wrong):
    with pytest.raises(InvalidValueError, match=r"tx must be a SQLAlchemy sessionmaker or Engine, or the alias"):
        define(app, tx=wrong)


def test_a_factory_must_be_bound_to_one_engine_of_a_dialect_that_is_known():
    with pytest.raises(InvalidValueError, match="must be bound to one engine"):
        database_of(sessionmaker())
    engine = create_engine("sqlite://")
    with pytest.raises(InvalidValueError, match="must be bound to one engine"):
        database_of(sessionmaker(engine, binds={"x": engine}))
    assert engine is database_of(scoped_session(sessionmaker(engine))).engine
    with pytest.raises(InvalidValueError, match="PostgreSQL or SQLite, not 'mssql'"):
        inbox_ddl("mssql")
    hasty = create_engine("sqlite://", isolation_level="AUTOCOMMIT")
    with pytest.raises(InvalidValueError, match="AUTOCOMMIT"):
        create_inbox(hasty)
    hasty.dispose()


def test_the_option_is_off_the_class_and_inherited(app, engine):
    class Booked(IdempotentTask):
        abstract = True
        tx = engine

    task = define(app)

    @app.task(base=Booked, shared=False, bind=True)
    def booked(self):
        """Has its base's."""

    app.finalize()
    assert [None, engine] == [one.qx_options.value(app, "tx") for one in (task, app.tasks[booked.name])]
    assert isinstance(type(app.tasks[booked.name]).tx, property)
    assert Booked.tx is engine


def test_neither_library_is_imported_unless_it_is_used():
    code = (
        "import sys, qx_cache_celery, qx_cache_celery.inbox\nprint({'sqlalchemy', 'django.db'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "set()" == done.stdout.strip()
