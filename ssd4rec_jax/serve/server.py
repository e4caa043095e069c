"""The process that serves: its socket, its signals, and the watch on the model's folder."""
import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop
from absl import logging

from ssd4rec_jax.errors import UserError
from ssd4rec_jax.serve.http import answer_until_told, http_server
from ssd4rec_jax.serve.local_calls import LocalCalls
from ssd4rec_jax.serve.service import Service
from ssd4rec_jax.serve.workers import Workers
from ssd4rec_jax.show.output import complain

WATCH_SECONDS = 2.0


def serve(service: Service, model: Path, host: str, port: int, *, page: bool = True, workers: int = 0) -> None:
    """Answer until SIGTERM or SIGINT, then finish what is in flight.

    model: the folder that is watched. SIGHUP, or another folder under the same name or link, has it read again.
    page: as in make_app. workers: processes that speak HTTP before this one; with 0 it does so itself. UserError where
    host and port cannot be listened at.
    """
    calls = LocalCalls(service)
    listener = _listening(host, port, calls.limits.connections)

    @contextlib.asynccontextmanager
    async def watching() -> AsyncIterator[None]:
        watch = asyncio.create_task(_watch(service, model, f'http://{host}:{listener.getsockname()[1]}'))
        yield
        watch.cancel()
        await asyncio.to_thread(service.stop)

    async def behind_workers() -> None:
        told, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in signal.SIGTERM, signal.SIGINT:
            loop.add_signal_handler(number, told.set)
        async with watching():
            before = Workers(calls, listener, workers, page=page, restarted=service.metrics.workers.inc)
            await told.wait()
            listener.close()
            await before.stop()

    if workers:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(behind_workers())
    else:
        answer_until_told(http_server(calls, watching, page=page), listener)


def _listening(host: str, port: int, backlog: int) -> socket.socket:
    """A socket that listens; UserError where that cannot be."""
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        raise UserError(f'cannot listen at --host={host} --port={port} ({error.strerror}): name others') from error


async def _watch(service: Service, model: Path, address: str) -> None:
    """Warm the model, and take a new one in whenever SIGHUP or a new folder tells of it."""
    hangup, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    known = _identity(model)
    try:
        await asyncio.to_thread(service.warm)
    except Exception:
        logging.exception('the model cannot be made ready')
        os._exit(1)  # Nothing was acknowledged yet. Whoever watches this process must see that it failed.
    complain(f'{address}: ready, with the model of step {service.serving.model.answers.saved.step}')
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(hangup.wait(), WATCH_SECONDS)
        there = _identity(model)
        if hangup.is_set() or (there is not None and there != known):
            hangup.clear()
            known = there
            await asyncio.to_thread(service.take_in, model)


def _identity(model: Path) -> tuple | None:
    """What changes when another folder takes a folder's name, or another model the place of a run's."""
    found = []
    for path in (model, model / 'model'):
        with contextlib.suppress(OSError):
            status = os.stat(path)
            found.append((status.st_dev, status.st_ino))
    return tuple(found) or None
