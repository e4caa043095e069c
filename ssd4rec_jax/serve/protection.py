"""Protection against clients that send or read slowly, or send far too much, below the application."""
import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ssd4rec_jax.serve.limits import Limits

HEAD_BYTES = 32 << 10
PIPELINED = 32  # requests of a connection that wait for the answers to those before them


def guarded_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol, which ends a connection whose request's head does not come whole in time and size.

    It also ends one whose client does not take what is written to it, or asks on and on without waiting for answers.
    """

    class Guarded(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None
        _head_bytes = 0
        _in_head = True

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._timer = self.loop.call_later(limits.header_seconds, self._too_slow)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            self._stop_unread()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._in_head:
                self._head_bytes += len(data)
                if self._timer is None:  # the first bytes of a further request
                    self._timer = self.loop.call_later(limits.header_seconds, self._too_slow)
            super().data_received(data)
            if self._in_head and self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response('The head of the request is too large.')
            if len(self.pipeline) > PIPELINED:
                self.transport.abort()

        def on_headers_complete(self) -> None:
            self._stop_timer()
            self._in_head = False
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._in_head, self._head_bytes = True, 0
            super().on_message_complete()

        def pause_writing(self) -> None:
            self._unread = self.loop.call_later(limits.reading_seconds, self.transport.abort)
            super().pause_writing()

        def resume_writing(self) -> None:
            self._stop_unread()
            super().resume_writing()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._end_soon()

        def _stop_unread(self) -> None:
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            if not self.transport.is_closing():
                self.transport.close()
            self._end_soon()

        def _end_soon(self) -> None:
            """A transport that is closed still waits for the client to take what was written."""
            self.loop.call_later(limits.reading_seconds, self.transport.abort)

    return Guarded
