"""A client that keeps a number of connections busy, and what it saw."""
import asyncio
import collections
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ssd4rec_jax.errors import ConfigError


class _Connection(asyncio.Protocol):
    """Sends a request, and the next one as soon as the answer to it is whole."""

    def __init__(self, head: bytes, bodies: Iterator[bytes], until: float, seen: '_Seen'):
        self._head, self._bodies, self._until, self._seen = head, bodies, until, seen
        self._got, self._missing, self._status, self._last = b'', -1, 0, False
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            self._got += data
            head, end, rest = self._got.partition(b'\r\n\r\n')
            if not end:
                return
            fields = dict(line.lower().split(b': ', 1) for line in head.split(b'\r\n')[1:])
            self._status, self._last = int(head[9:12]), fields.get(b'connection') == b'close'
            self._missing, data = int(fields[b'content-length']), rest
        self._missing -= len(data)
        if not self._missing:
            self._seen.answer(self._status, time.perf_counter() - self._sent, self._body)
            self._got, self._missing = b'', -1
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._seen.lost += 1
            self.done.set_result(True)

    def _send(self) -> None:
        body = None if self._last or time.perf_counter() >= self._until else next(self._bodies, None)
        if body is None:
            self.done.set_result(False)
            self._transport.close()
            return
        self._body, self._sent = body, time.perf_counter()
        self._transport.write(b'%scontent-length: %d\r\n\r\n%s' % (self._head, len(body), body))


class _Seen:
    """What all connections saw together."""

    def __init__(self, answered: list[bytes] | None) -> None:
        self.status: collections.Counter = collections.Counter()
        self.seconds: list[float] = []
        self.lost, self._answered = 0, answered

    def answer(self, status: int, seconds: float, body: bytes) -> None:
        self.status[status] += 1
        if status == 200:
            self.seconds.append(seconds)
            if self._answered is not None:
                self._answered.append(body)


def workers_of(owner: int) -> list[int]:
    """The processes of the HTTP workers of a service; ConfigError where it has none."""
    found = Path(f'/proc/{owner}/task/{owner}/children').read_text().split()
    if not found:
        raise ConfigError(f'--owner={owner} has no workers: start it with --workers')
    return [int(process) for process in found]


async def load(
    host: str, port: int, path: str, bodies: Iterator[bytes], *, connections: int, seconds: float, reopen: bool = False,
    answered: list[bytes] | None = None,
) -> dict[str, Any]:
    """Keep connections busy with POST requests for some seconds, or until there are no more bodies.

    reopen: open a connection that ended without an answer again. answered: gets the bodies whose answer had status 200.

    Returns connections, requests, status {code: answers}, lost (connections that ended without an answer),
    requests_per_second, and p50_ms, p90_ms, p99_ms, max_ms of the answers with status 200.
    """
    seen, loop = _Seen(answered), asyncio.get_running_loop()
    head = (
        f'POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n'
    ).encode()
    started = time.perf_counter()

    async def busy() -> None:
        lost = True
        while lost:
            _, connection = await loop.create_connection(
                lambda: _Connection(head, bodies, started + seconds, seen), host, port
            )
            lost = await connection.done and reopen

    await asyncio.gather(*(busy() for _ in range(connections)))
    took = time.perf_counter() - started
    p50, p90, p99, most = np.percentile(seen.seconds or [0], [50, 90, 99, 100]) * 1e3
    return {
        'connections': connections, 'requests': seen.status.total() + seen.lost, 'status': dict(seen.status),
        'lost': seen.lost, 'requests_per_second': round(len(seen.seconds) / took, 1), 'p50_ms': round(p50, 2),
        'p90_ms': round(p90, 2), 'p99_ms': round(p99, 2), 'max_ms': round(most, 2),
    }
