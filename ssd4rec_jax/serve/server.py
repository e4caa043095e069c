"""The process that serves: its socket, its signals, and the watch on the model's folder."""
import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn

from ssd4rec_jax.serve.app import make_app
from ssd4rec_jax.serve.protection import guarded_protocol
from ssd4rec_jax.serve.service import Service
from ssd4rec_jax.show.output import complain

WATCH_SECONDS = 2.0


def serve(service: Service, model: Path, host: str, port: int, *, page: bool = True) -> None:
    """Answer until SIGTERM or SIGINT, then finish what is in flight.

    model: the folder that is watched. SIGHUP, or another folder under the same name or link, has it read again.
    page: as in make_app.
    """
    limits, app = service.limits, make_app(service, page=page)

    @contextlib.asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        watch = asyncio.create_task(_watch(service, model, f'http://{host}:{port}'))
        yield
        watch.cancel()
        await asyncio.to_thread(service.stop)

    app.router.lifespan_context = lifespan
    config = uvicorn.Config(
        app, host=host, port=port, http=guarded_protocol(limits), ws='none', access_log=False, log_level='warning',
        server_header=False, timeout_keep_alive=int(limits.idle_seconds), limit_concurrency=limits.connections,
        timeout_graceful_shutdown=int(limits.shutdown_seconds), backlog=limits.connections,
    )
    # uvicorn finishes what is in flight and then raises the signal once more, for whoever handled it before.
    signal.signal(signal.SIGTERM, lambda *_: None)
    uvicorn.Server(config).run()


async def _watch(service: Service, model: Path, address: str) -> None:
    """Warm the model, and take a new one in whenever SIGHUP or a new folder tells of it."""
    hangup, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    known = _identity(model)
    await asyncio.to_thread(service.warm)
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
