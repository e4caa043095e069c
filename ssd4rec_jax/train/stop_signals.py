"""Signals that ask a training to save and stop."""
import contextlib
import os
import signal
from types import FrameType
from typing import Any


class StopSignals:
    """Ctrl-C, SIGTERM and SIGHUP (a closed terminal) ask the run to save and stop; a second Ctrl-C interrupts at once.

    A SIGHUP that was ignored at the start, as nohup has it, stays ignored.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._receive)

    def release(self) -> None:
        """Give the signals back to those who had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        # Not print: the signal may have come in the midst of one.
        name = signal.Signals(number).name
        with contextlib.suppress(OSError):  # a terminal that is closed takes no more
            os.write(2, f'\n{name}: stopping after the step that runs; Ctrl-C again stops without saving\n'.encode())

    def requested(self) -> bool:
        """Whether such a signal has come."""
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """128 + signal, as a shell reports a process that a signal ended; SIGTERM's where it came to another
        process.
        """
        return 128 + (self.received or signal.SIGTERM)
