"""``python -m shop.migrate``: makes the tables. Safe to repeat, and safe in several containers at once."""

from sqlalchemy import Engine

from qx_cache import SyncDistributedLock, create_sync_client
from qx_cache_celery.inbox import create_inbox
from shop.models import Base, open_database
from shop.settings import Settings


def make_tables(engine: Engine) -> None:
    """The shop's tables, and the one in which ``tx=`` keeps its rows."""
    Base.metadata.create_all(engine)
    create_inbox(engine)
    engine.dispose()


def main() -> None:
    """Make them, one process after the other: two that look at the same time would both find nothing."""
    settings = Settings()
    engine = open_database(settings.database_url.get_secret_value())
    with (
        create_sync_client(settings.redis_url) as client,
        SyncDistributedLock(client, "migrate", ttl_seconds=60, namespace="shop"),
    ):
        make_tables(engine)
    print("the tables are there")


if __name__ == "__main__":
    main()
