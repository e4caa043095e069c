"""A service's application behind a socket, in a thread of the test process."""
import contextlib
import threading
from collections.abc import Iterator

import uvicorn

from ssd4rec_jax.serve.app import make_app
from ssd4rec_jax.serve.local_calls import LocalCalls
from ssd4rec_jax.serve.protection import guarded_protocol
from ssd4rec_jax.serve.service import Service


@contextlib.contextmanager
def listening(service: Service) -> Iterator[int]:
    """The port at which it listens."""
    server = uvicorn.Server(uvicorn.Config(
        make_app(LocalCalls(service)), port=0, http=guarded_protocol(service.limits), ws='none', log_level='warning',
    ))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.05)
        assert thread.is_alive()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
