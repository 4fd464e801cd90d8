"""Waiting at the server for a wake-up: with a connection for each thread, or one for all tasks of a loop."""

import asyncio
from collections.abc import Callable

from qx_cache._call import Call
from qx_cache._connect import CONNECT_SECONDS, async_sibling, belonging, waiting_sibling
from qx_cache._run import AsyncClient, SyncClient, ablock, block

MakeCall = Callable[[float], Call[None]]


def wait_for_wake(client: SyncClient, make_call: MakeCall, seconds: float) -> None:
    """Block until the wake list of ``make_call(seconds)`` has an element, for ``seconds`` at most."""
    block(waiting_sibling(client), make_call(seconds), seconds)


async def await_wake(client: AsyncClient, name: bytes, make_call: MakeCall, seconds: float) -> None:
    """Asyncio twin of ``wait_for_wake``: all tasks that wait for ``name`` share one connection."""
    under_way: dict[bytes, asyncio.Task[None]] = belonging(client, "wakes", lambda _: {})
    task = under_way.get(name)
    timeout: float | None = seconds
    if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
        task = under_way[name] = asyncio.create_task(_block(client, make_call, seconds))
        timeout = None  # it ends in time by itself
        task.add_done_callback(lambda done: under_way.pop(name) if under_way.get(name) is done else None)
    await asyncio.wait({task}, timeout=timeout)  # who gives up leaves it to the others
    if task.done():
        task.result()


async def _block(client: AsyncClient, make_call: MakeCall, seconds: float) -> None:
    waiter = async_sibling(client, timeout_seconds=CONNECT_SECONDS)
    try:
        await ablock(waiter, make_call(seconds), seconds)
    finally:
        await waiter.aclose(close_connection_pool=True)
