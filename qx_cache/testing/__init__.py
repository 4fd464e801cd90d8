"""Pytest fixtures on a real server, loaded only where they are asked for.

Ask with ``pytest_plugins = ["qx_cache.testing"]`` in the top ``conftest.py``, or with ``-p qx_cache.testing``.
Nothing is loaded, started or read before. ``python -m qx_cache.testing URL`` runs the conformance suite against a
server of yours.

Example:
    ```python
    # conftest.py
    pytest_plugins = ["qx_cache.testing"]


    # test_shop.py
    def test_a_result_is_kept(qx_redis_url, qx_namespace):
        with create_sync_client(qx_redis_url) as client:
            store = SyncIdempotencyStore(client, namespace=qx_namespace)
            assert store.set("order:42", "paid")
    ```
"""

import os
import sys
from collections.abc import Iterator
from uuid import uuid4

try:
    import pytest
except ModuleNotFoundError:
    if sys.argv[0] != "-m":  # imported, and not run as a command
        raise
    print('the conformance suite is run by pytest: pip install "qx-cache-celery[testing]"', file=sys.stderr)
    raise SystemExit(2) from None

from qx_cache.client import create_sync_client
from qx_cache.embedded import start_server


@pytest.fixture(scope="session")
def qx_redis_url() -> Iterator[str]:
    """URL of the server for this session, as redis-py takes it.

    ``QX_CACHE_TEST_URL`` where set; else a throwaway server, one a session (and one for each xdist worker), which
    is gone at its end.

    Raises:
        EmbeddedServerError: No URL is set and no server could be started; an error, never a skip.

    Example:
        ```python
        def test_it(qx_redis_url):
            with redis.Redis.from_url(qx_redis_url) as client:
                assert client.ping()
        ```
    """
    if url := os.environ.get("QX_CACHE_TEST_URL"):
        yield url
        return
    with start_server() as server:
        yield server.url


@pytest.fixture
def qx_namespace(qx_redis_url: str) -> Iterator[str]:
    """A namespace of the test's own, ``test-<hex>``, instead of flushing a server that may be shared.

    After the test everything under ``<namespace>:`` is deleted. A key among it that has no TTL would have stayed
    for ever: pytest then reports an error at this test's teardown that names the key.

    Example:
        ```python
        def test_it(qx_redis_url, qx_namespace):
            with redis.Redis.from_url(qx_redis_url) as client:
                client.set(f"{qx_namespace}:greeting", "hello", ex=60)  # without ex: an error
        ```
    """
    namespace = f"test-{uuid4().hex}"
    yield namespace
    with create_sync_client(qx_redis_url) as raw:
        left = sorted(raw.scan_iter(f"{namespace}:*", count=1000))
        immortal = [key.decode(errors="replace") for key in left if raw.pttl(key) == -1]
        for key in left:
            raw.delete(key)  # one by one: in a cluster they lie on several nodes
    if immortal:
        pytest.fail(f"keys without a TTL: {', '.join(immortal)}", pytrace=False)
