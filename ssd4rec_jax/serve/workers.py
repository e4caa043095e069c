"""The owner's side of its HTTP workers: processes that are started, answered, and started anew when they die."""
import asyncio
import dataclasses
import json
import socket
import subprocess
import sys
from collections.abc import Callable

from ssd4rec_jax.serve.calls import KINDS
from ssd4rec_jax.serve.frames import Frames
from ssd4rec_jax.serve.local_calls import LocalCalls
from ssd4rec_jax.show.output import complain

_NAMES = list(KINDS)
_LEAST_SECONDS = 1.0  # from one start of a worker to the next one


class Workers:
    """Some HTTP workers before the calls of this process.

    listener: the socket at which all of them accept connections. What waits there outlives a worker. page: as in
    make_app. restarted: is called when a worker has died and is started again.
    """

    def __init__(
        self, calls: LocalCalls, listener: socket.socket, number: int, *, page: bool, restarted: Callable[[], None]
    ):
        self._calls, self._listener, self._page, self._restarted = calls, listener, page, restarted
        self._stopping = False
        self._processes: set[subprocess.Popen] = set()
        self._kept = [asyncio.create_task(self._keep()) for _ in range(number)]

    async def stop(self) -> None:
        """Have the workers finish what is in flight and end them."""
        self._stopping = True
        for process in self._processes:
            process.terminate()
        _, late = await asyncio.wait(self._kept, timeout=self._calls.limits.shutdown_seconds + 5)
        for process in [*self._processes] if late else []:
            process.kill()

    async def _keep(self) -> None:
        """Have one worker live until the end."""
        loop = asyncio.get_running_loop()
        while not self._stopping:
            started = loop.time()
            try:
                process, ours = self._start()
            except OSError as error:
                complain(f'an HTTP worker cannot be started ({error.strerror}): it is tried again')
                await asyncio.sleep(_LEAST_SECONDS)
                continue
            self._processes.add(process)
            end = _End(self._calls)
            await loop.create_connection(lambda end=end: end.frames, sock=ours)  # type: ignore[misc]
            await end.gone.wait()
            code = await asyncio.to_thread(process.wait)
            self._processes.discard(process)
            if not self._stopping:
                complain(f'the HTTP worker {process.pid} ended with {code}: another one is started')
                self._restarted()
                await asyncio.sleep(max(0.0, started + _LEAST_SECONDS - loop.time()))

    def _start(self) -> tuple[subprocess.Popen, socket.socket]:
        """A new worker, and this end of the connection to it."""
        ours, theirs = socket.socketpair()
        files = {'listener': self._listener.fileno(), 'owner': theirs.fileno()}
        told = {**files, 'page': self._page, 'limits': dataclasses.asdict(self._calls.limits)}
        command = [sys.executable, '-m', 'ssd4rec_jax.serve.worker', json.dumps(told)]
        with theirs:
            try:
                # asyncio's own way forks, which JAX warns of. A session of its own keeps Ctrl-C for the owner.
                return subprocess.Popen(command, pass_fds=tuple(files.values()), start_new_session=True), ours
            except OSError:
                ours.close()
                raise


class _End:
    """The owner's end of the connection to one worker."""

    def __init__(self, calls: LocalCalls):
        self._calls = calls
        self._answering: set[asyncio.Task] = set()
        self.gone = asyncio.Event()
        self.frames = Frames(self._received, self.gone.set)

    def _received(self, number: int, code: int, content: bytes) -> None:
        task = asyncio.create_task(self._answer(number, _NAMES[code], content))
        self._answering.add(task)  # The loop alone would not keep it alive.
        task.add_done_callback(self._answering.discard)

    async def _answer(self, number: int, name: str, content: bytes) -> None:
        found = await self._calls.call(name, KINDS[name].model_validate_json(content))
        self.frames.send(number, *found)
