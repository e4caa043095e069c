"""Group commit: events that come while the disk writes are written together next, with one fsync."""
import asyncio
import collections
import threading
from collections.abc import Callable, Sequence

from ssd4rec_jax.errors import UserError
from ssd4rec_jax.serve.batches import QueueFull
from ssd4rec_jax.serve.event_log import Event, EventLog


class LogWriter:
    """One thread that owns the log; an event loop hands events to it and waits until the disk holds them.

    most: requests that may wait. kept: is called in the event loop with events that the disk holds, before whoever
    waits for them hears of it.
    """

    def __init__(self, log: EventLog, most: int, kept: Callable[[Sequence[Event]], None]):
        self._log, self._most, self._kept = log, most, kept
        self._queue: collections.deque[tuple[Sequence[Event], asyncio.Future]] = collections.deque()
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name='event log', daemon=True)
        self._thread.start()

    def append(self, events: Sequence[Event]) -> asyncio.Future:
        """A future of the running event loop that is done when the events are kept; QueueFull where too many wait."""
        future = asyncio.get_running_loop().create_future()
        with self._changed:
            if len(self._queue) >= self._most or self._stopping:
                raise QueueFull
            self._queue.append((events, future))
            self._changed.notify()
        return future

    def stop(self) -> None:
        """Write what waits, end the thread and close the log."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        self._log.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._stopping:
                    self._changed.wait()
                taken = list(self._queue)
                self._queue.clear()
            if not taken:
                return
            failure: UserError | None = None
            try:
                self._log.append([event for events, _ in taken for event in events])
            except UserError as error:
                failure = error
            taken[0][1].get_loop().call_soon_threadsafe(self._deliver, taken, failure)

    def _deliver(self, taken: list[tuple[Sequence[Event], asyncio.Future]], failure: UserError | None) -> None:
        for events, future in taken:
            if failure is None:
                self._kept(events)
            if future.done():  # Whoever waited has gone; the events are kept all the same.
                continue
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(failure)
