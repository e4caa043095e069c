"""Waiting for what comes about in its own time."""
import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar('T')
SECONDS = 500.0  # A machine that is busy with other things takes long; this only ends what would never come.


def until(there: Callable[[], T], seconds: float = SECONDS) -> T:
    """What `there` returns once it is true; AssertionError after some seconds."""
    end = time.monotonic() + seconds
    while not (found := there()):
        assert time.monotonic() < end, 'it does not come about'
        time.sleep(0.05)
    return found


async def until_it_is(there: Callable[[], Awaitable[T]], seconds: float = SECONDS) -> T:
    """The same within an event loop, which goes on meanwhile."""
    async with asyncio.timeout(seconds):
        while not (found := await there()):
            await asyncio.sleep(0.05)
    return found
