"""A service's application behind a socket, in a thread of the test process."""
import contextlib
import socket
import threading
from collections.abc import Iterator

from ssd4rec_jax.serve.http import http_server
from ssd4rec_jax.serve.local_calls import LocalCalls
from ssd4rec_jax.serve.service import Service


@contextlib.contextmanager
def listening(service: Service) -> Iterator[int]:
    """The port at which it listens."""
    server = http_server(LocalCalls(service), contextlib.nullcontext, page=True)
    listener = socket.create_server(('127.0.0.1', 0))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        thread.join(0.05)
        assert thread.is_alive()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
