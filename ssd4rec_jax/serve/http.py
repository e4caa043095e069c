"""The HTTP server of an application, with the limits that protect it."""
import contextlib
import signal
import socket
from collections.abc import Callable

import uvicorn

from ssd4rec_jax.serve.app import make_app
from ssd4rec_jax.serve.calls import Calls
from ssd4rec_jax.serve.protection import guarded_protocol


def http_server(
    calls: Calls, around: Callable[[], contextlib.AbstractAsyncContextManager[None]], *, page: bool
) -> uvicorn.Server:
    """A server for `answer_until_told`. around: what is entered before the first request and left after the last one.

    page: as in make_app.
    """
    limits, app = calls.limits, make_app(calls, page=page)
    app.router.lifespan_context = lambda _: around()
    return uvicorn.Server(uvicorn.Config(
        app, http=guarded_protocol(limits), ws='none', access_log=False, log_level='warning',
        server_header=False, timeout_keep_alive=int(limits.idle_seconds), limit_concurrency=limits.connections,
        timeout_graceful_shutdown=int(limits.shutdown_seconds), backlog=limits.connections,
    ))


def answer_until_told(server: uvicorn.Server, listener: socket.socket) -> None:
    """Answer until SIGTERM or SIGINT, then finish what is in flight."""
    # uvicorn finishes what is in flight and then raises the signal once more, for whoever handled it before.
    signal.signal(signal.SIGTERM, lambda *_: None)
    server.run(sockets=[listener])
