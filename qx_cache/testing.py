"""Pytest fixtures, loaded only where they are asked for.

Example:
    ```python
    # conftest.py
    pytest_plugins = ["qx_cache.testing"]


    # test_shop.py
    def test_it(qx_redis_url, qx_namespace):
        store = SyncIdempotencyStore(create_sync_client(qx_redis_url), namespace=qx_namespace)
    ```
"""

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest

from qx_cache.embedded import start_server


@pytest.fixture(scope="session")
def qx_redis_url() -> Iterator[str]:
    """``QX_CACHE_TEST_URL`` where set, else a throwaway server for the session."""
    if url := os.environ.get("QX_CACHE_TEST_URL"):
        yield url
        return
    with start_server() as server:
        yield server.url


@pytest.fixture
def qx_namespace(qx_redis_url: str) -> Iterator[str]:
    """A namespace of the test's own; whatever is left under it must expire, and is then removed."""
    import redis  # noqa: PLC0415  # where the fixture is used

    namespace = f"test-{uuid4().hex}"
    yield namespace
    with redis.Redis.from_url(qx_redis_url) as raw:
        left = list(raw.scan_iter(f"{namespace}:*", count=1000))
        immortal = [key for key in left if raw.pttl(key) == -1]
        if left:
            raw.delete(*left)
    if immortal:
        pytest.fail(f"keys without a TTL: {immortal}")
