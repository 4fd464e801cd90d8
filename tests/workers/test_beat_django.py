"""A Django project: its settings, tasks that are published at the commit, and the schedule in its database."""

import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from beating import HERE, beats_of, dues

pytestmark = pytest.mark.worker
LOCK_SECONDS = 2
SCHEDULER = "qx_cache_celery.beat:SingletonDatabaseScheduler"


class Project:
    """The project's command line, and its database as it is on disk."""

    def __init__(self, folder):
        self._path = folder / "bookshop.sqlite3"

    def do(self, what):
        subprocess.run([sys.executable, "bookshop_admin.py", what], cwd=HERE, check=True)

    def sql(self, statement):
        with closing(sqlite3.connect(self._path, timeout=20, isolation_level=None)) as connection:
            connection.execute(statement)

    def entry(self, name):
        """How often the entry ran, and when last, as far as it was written."""
        with closing(sqlite3.connect(self._path)) as connection:
            sql = "SELECT total_run_count, last_run_at FROM django_celery_beat_periodictask WHERE name = ?"
            return connection.execute(sql, [name]).fetchone()


@pytest.fixture
def shop(shop_with):
    return shop_with(name="bookshop", imported=False)


@pytest.fixture
def project(shop):
    project = Project(shop.folder)
    project.do("migrate")
    return project


def test_what_is_published_at_the_commit_is_recorded_under_the_projects_namespace(shop, project):
    shop.start()
    project.do("orders")
    shop.until(lambda: len(shop.journal("paid")) == 2 and shop.journal("counted"))
    shop.until(shop.idle)
    assert ["a", "b"] == sorted(row["order"] for row in shop.journal("paid"))
    assert ["a"] == [row["order"] for row in shop.journal("counted")]
    assert 2 == len(list(shop.redis.scan_iter("books:idem:*")))


def test_the_leader_alone_goes_by_the_database_and_is_followed(shop, project):
    shop.start()
    project.do("entries")
    with beats_of(shop, SCHEDULER) as beats:
        first, second = beats.start(), beats.start()
        shop.until(lambda: len(shop.journal("tick")) > 2 and shop.journal("opened"))
        assert beats.leads(first)
        assert shop.journal("wrote", pid=beats.pid(first))
        assert [] == shop.journal("wrote", pid=beats.pid(second))

        killed_at = beats.kill(first)
        stale = project.entry("each second")
        shop.until(lambda: dues(shop.journal("tick"))[-1] > killed_at, what="a tick of the second")
        assert beats.leads(second)
        after = min(row["at"] for row in shop.journal("tick") if row["at"] > killed_at + 0.2)
        assert after - killed_at < 1.2 * LOCK_SECONDS + 1 + 0.5  # a turn of the schedule, and a noisy machine

        third = beats.start()
        shop.until(lambda: len(shop.journal("tick")) > 6)
        stopped_at = beats.stop_one(second)
        left = project.entry("each second")
        assert left > stale  # what the leader knew is in the database before another leads
        elected = shop.until(lambda: shop.journal("elected", pid=beats.pid(third)), seconds=5)[0]
        assert elected["at"] - stopped_at < 1 + 0.5
        shop.until(lambda: dues(shop.journal("tick"))[-1] > stopped_at + 1)

    seen = dues(shop.journal("tick"))
    assert len(set(seen)) == len(seen)
    assert 1 == len(shop.journal("opened"))  # though the second read in the database that it never ran
    assert "opening" in beats.log(second)


def test_a_tick_whose_publish_a_stop_interrupts_is_not_written_as_run(shop, project):
    shop.start()
    project.do("entries")
    shop.open("held")
    with beats_of(shop, SCHEDULER) as beats:
        first, second = beats.start(), beats.start()
        shop.until(lambda: shop.journal("publishing", pid=beats.pid(first)) and shop.journal("tick"))
        beats.stop_one(first)
        assert (0, None) == project.entry("opening")
        shop.until(lambda: shop.journal("opened"), what="the opening by the second")
        beats.stop_one(second)
    assert 1 == project.entry("opening")[0]
    assert 1 == len(shop.journal("opened"))


def test_a_beat_that_is_elected_while_the_database_is_away_waits_for_it(shop, project):
    shop.start()
    project.do("entries")
    with beats_of(shop, SCHEDULER) as beats:
        first, second = beats.start(), beats.start()
        shop.until(lambda: len(shop.journal("tick")) > 1)
        project.sql("ALTER TABLE django_celery_beat_periodictask RENAME TO elsewhere")
        killed_at = beats.kill(first)
        shop.until(lambda: "the schedule cannot be read for now" in beats.log(second))
        assert [second] == beats.living()
        project.sql("UPDATE elsewhere SET name = 'anew' WHERE name = 'each second'")
        project.sql("ALTER TABLE elsewhere RENAME TO django_celery_beat_periodictask")
        shop.until(lambda: dues(shop.journal("tick"))[-1] > killed_at, what="a tick of the second")
    later = {row["tick"].rsplit(" ", 1)[0] for row in shop.journal("tick") if row["at"] > killed_at + 1}
    assert {"anew"} == later  # and nothing that it had read before
