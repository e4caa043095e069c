"""An HTTP worker: a process that checks requests and asks the owner of the model, which started it.

    python -m ssd4rec_jax.serve.worker '{"listener": 3, "owner": 4, "page": true, "limits": {...}}'

listener, owner: file descriptors of the socket that is listened at and of the connection to the owner. It starts no
JAX, and ends when the owner does.
"""
import asyncio
import contextlib
import itertools
import json
import socket
import sys
from collections.abc import AsyncIterator

import uvicorn
from pydantic import BaseModel

from ssd4rec_jax.serve.calls import KINDS, Answer, refusal
from ssd4rec_jax.serve.frames import Frames
from ssd4rec_jax.serve.http import answer_until_told, http_server
from ssd4rec_jax.serve.limits import Limits

_CODES = {name: code for code, name in enumerate(KINDS)}
_OWNERS_SECONDS = 5.0  # beyond the time that the owner gives itself, before it counts as stuck
_GONE = refusal(503, 'the service has ended: try again in a second')


class RemoteCalls:
    """Calls (ssd4rec_jax.serve.calls) that another process answers."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.gone = asyncio.Event()
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self.frames = Frames(self._received, self._ended)

    async def call(self, name: str, asked: BaseModel) -> Answer:
        """The owner's answer; 503 where it has gone."""
        if self.gone.is_set():
            return _GONE
        number, waiting = next(self._numbers) % 2**32, asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            self.frames.send(number, _CODES[name], asked.model_dump_json().encode())
            async with asyncio.timeout(self.limits.request_seconds + _OWNERS_SECONDS):
                return await waiting
        except TimeoutError:
            return refusal(503, 'the answer took too long: try again in a second')
        finally:
            del self._waiting[number]

    def _received(self, number: int, status: int, content: bytes) -> None:
        waiting = self._waiting.get(number)
        if waiting is not None and not waiting.done():  # else whoever asked has gone
            waiting.set_result(Answer(status, content))

    def _ended(self) -> None:
        self.gone.set()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(_GONE)


def work(listener: socket.socket, owner: socket.socket, limits: Limits, *, page: bool) -> None:
    """Answer until SIGTERM, or until the owner has gone."""
    calls = RemoteCalls(limits)

    @contextlib.asynccontextmanager
    async def connected() -> AsyncIterator[None]:
        await asyncio.get_running_loop().create_connection(lambda: calls.frames, sock=owner)
        watch = asyncio.create_task(_end_with_owner(calls, server))
        yield
        watch.cancel()

    server = http_server(calls, connected, page=page)
    answer_until_told(server, listener)


async def _end_with_owner(calls: RemoteCalls, server: uvicorn.Server) -> None:
    await calls.gone.wait()
    server.should_exit = True


if __name__ == '__main__':
    _told = json.loads(sys.argv[1])
    work(
        socket.socket(fileno=_told['listener']), socket.socket(fileno=_told['owner']), Limits(**_told['limits']),
        page=_told['page'],
    )
