"""Waiting at the server: with a connection for each thread, or one for all tasks of a loop."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from qx_cache._call import Call
from qx_cache._connect import async_waiting_client, belonging, waiting_client
from qx_cache._run import AsyncClient, SyncClient, ablock, block

T = TypeVar("T")
MakeCall = Callable[[float], Call[None]]


def wait_at_server(client: SyncClient, call: Call[T], seconds: float) -> T:
    """Perform a ``call`` that the server answers after ``seconds`` at the latest."""
    return block(waiting_client(client, call.key), call, seconds)


async def await_at_server(client: AsyncClient, call: Call[T], seconds: float) -> T:
    """Asyncio twin of ``wait_at_server``, on a connection that is closed again."""
    waiter = async_waiting_client(client, call.key)
    try:
        return await ablock(waiter, call, seconds)
    finally:
        await asyncio.shield(waiter.aclose(close_connection_pool=True))


def wait_for_wake(client: SyncClient, make_call: MakeCall, seconds: float) -> None:
    """Block until the wake list of ``make_call(seconds)`` has an element, for ``seconds`` at most."""
    wait_at_server(client, make_call(seconds), seconds)


async def await_wake(client: AsyncClient, name: bytes, make_call: MakeCall, seconds: float) -> None:
    """Asyncio twin of ``wait_for_wake``: all tasks that wait for ``name`` share one connection."""
    await shared(client, b"wake " + name, lambda: await_at_server(client, make_call(seconds), seconds), seconds)


async def shared(
    client: AsyncClient, name: bytes, work: Callable[[], Coroutine[Any, Any, T]], seconds: float | None = None
) -> T | None:
    """What ``work`` returns, done once for all tasks that ask for ``name`` while it is under way.

    None after ``seconds``; who gives up, or is cancelled, leaves it to the others.
    """
    under_way: dict[bytes, asyncio.Task[T]] = belonging(client, "shared", lambda _: {})
    task = under_way.get(name)
    if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
        task = under_way[name] = asyncio.create_task(work())

        def forget(done: asyncio.Task[T]) -> None:
            if under_way.get(name) is done:
                del under_way[name]
            if not done.cancelled():
                done.exception()  # nobody may be left to see it

        task.add_done_callback(forget)
        seconds = None  # who began it knows that it ends in time
    await asyncio.wait({task}, timeout=seconds)
    return task.result() if task.done() else None
