"""Celery's ``DjangoTask`` beside ours: published at the commit, run once."""

import django
import pytest
from django.conf import settings
from django.db import transaction

pytestmark = pytest.mark.worker


@pytest.fixture(scope="module", autouse=True)
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("django") / "db.sqlite3"
    settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path)}})
    django.setup()


@pytest.mark.parametrize("name", ["committed", "committed_reversed"])
def test_what_is_published_at_the_commit_runs_once(shop, name):
    task = getattr(shop.tasks, name)
    with transaction.atomic():
        task.delay_on_commit("never")
        transaction.set_rollback(True)
    with transaction.atomic():
        task.delay_on_commit("a")
        task.apply_async_on_commit(("b",), idempotency_key="a key of the call")
        assert [] == shop.journal()
    shop.until(lambda: 2 == len(shop.journal("start")))
    assert "a" == task.delay("a").get(timeout=20)
    assert "b" == task.apply_async(("b",), idempotency_key="a key of the call").get(timeout=20)
    assert ["a", "b"] == sorted(row["order"] for row in shop.journal("start"))
