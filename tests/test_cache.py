"""The cache, on both twins."""

from dataclasses import dataclass
from datetime import date

import pytest

from qx_cache import CacheValueError, InvalidValueError
from qx_cache.keys import Keyspace


@dataclass
class User:
    name: str
    born: date


async def test_a_typed_value_comes_back_as_what_it_was(world):
    cache = world.make("Cache")
    user = User("Ada", date(1815, 12, 10))
    await cache.set("u", user)

    assert user == await cache.get("u", User)
    assert {"name": "Ada", "born": "1815-12-10"} == await cache.get("u")
    assert await cache.exists("u")
    assert await cache.delete("u")
    assert not await cache.delete("u")
    assert "none" == await cache.get("u", User, "none")


async def test_a_wrong_shape_names_key_and_type(world):
    cache = world.make("Cache")
    await cache.set("u", {"name": 1})
    with pytest.raises(CacheValueError, match=r"'u'.*User"):
        await cache.get("u", User)
    with pytest.raises(CacheValueError, match=r"'u'.*object"):
        await cache.set("u", object())


async def test_every_value_expires(world, raw):
    cache = world.make("Cache", ttl_seconds=100)
    await cache.set("a", 1)
    await cache.set("b", 1, ttl_seconds=0.5)
    assert 99_000 < raw.pttl(f"{world.namespace}:cache:1:{{a}}") <= 100_000
    assert raw.pttl(f"{world.namespace}:cache:1:{{b}}") <= 500
    with pytest.raises(InvalidValueError, match="ttl_seconds"):
        await cache.set("c", 1, ttl_seconds=0)


def test_keys_share_a_hash_tag_and_never_collide():
    keys = Keyspace("shop")
    assert b"shop:lock:1:{a%7Db%25}" == keys.lock("a}b%")
    assert keys.fence("l") == keys.lock("l") + b":f"
    long, longer = keys.record("x" * 201), keys.record("x" * 202)
    assert long != longer
    assert len(long) < 60
    assert b"{%7E" in keys.record("~short")
    for bad in ("", None, 5, "\udcff"):
        with pytest.raises(InvalidValueError):
            keys.record(bad)
    with pytest.raises(InvalidValueError, match="namespace"):
        Keyspace("")
