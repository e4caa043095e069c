"""Frames over a stream socket: how an HTTP worker and the owner of the model speak to each other."""
import asyncio
import struct
from collections.abc import Callable
from typing import Any

_HEAD = struct.Struct('>IIH')  # bytes of content, number of the question, code


class Frames(asyncio.Protocol):
    """One end of a connection. A frame is a number, a code and content; an answer has the number of its question.

    The code of a question is its place in ssd4rec_jax.serve.calls.KINDS, that of an answer its HTTP status; the content
    is JSON. received: is called with (number, code, content) of each frame. ended: when the other end has gone.
    """

    def __init__(self, received: Callable[[int, int, bytes], None], ended: Callable[[], None]):
        self._received, self._ended = received, ended
        self._buffer = bytearray()
        self._transport: Any = None

    def send(self, number: int, code: int, content: bytes) -> None:
        """Send a frame, unless the other end has gone."""
        if not self._transport.is_closing():
            self._transport.write(_HEAD.pack(len(content), number, code) + content)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= _HEAD.size:
            size, number, code = _HEAD.unpack_from(self._buffer, at)
            stop = at + _HEAD.size + size
            if len(self._buffer) < stop:
                break
            self._received(number, code, bytes(self._buffer[at + _HEAD.size:stop]))
            at = stop
        del self._buffer[:at]

    def connection_lost(self, error: Exception | None) -> None:
        self._ended()
