"""The process around a run: compilation cache, a backend that may surprise, signals that ask for a stop."""
import contextlib
import glob
import os
import signal
from pathlib import Path

import jax

CACHE_VARIABLE = 'SSD4REC_CACHE'


def enable_compilation_cache() -> Path:
    """Keep compiled programs between runs, in $SSD4REC_CACHE or ~/.cache/ssd4rec-jax."""
    root = Path(os.environ.get(CACHE_VARIABLE, Path.home() / '.cache' / 'ssd4rec-jax'))
    path = root / 'xla'
    jax.config.update('jax_compilation_cache_dir', str(path))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
    return path


def backend_warning() -> str | None:
    """A sentence if this machine has an NVIDIA GPU or a TPU that this JAX does not use."""
    if jax.default_backend() != 'cpu' or os.environ.get('JAX_PLATFORMS', '').startswith('cpu'):
        return None
    if glob.glob('/dev/nvidia[0-9]*'):
        return 'this machine has an NVIDIA GPU but JAX runs on the CPU: pip install "ssd4rec-jax[gpu]"'
    if glob.glob('/dev/accel[0-9]*'):
        return 'this machine has a TPU but JAX runs on the CPU: pip install "ssd4rec-jax[tpu]"'
    return None


class StopSignals:
    """Ctrl-C, SIGTERM and SIGHUP (a closed terminal) ask the run to save and stop; a second Ctrl-C interrupts at once.

    A SIGHUP that was ignored at the start, as nohup has it, stays ignored.
    """

    def __init__(self):
        self.received: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._receive)

    def _receive(self, number, frame):
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        # Not print: the signal may have come in the midst of one.
        name = signal.Signals(number).name
        with contextlib.suppress(OSError):  # a terminal that is closed takes no more
            os.write(2, f'\n{name}: stopping after the step that runs; Ctrl-C again stops without saving\n'.encode())

    def requested(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """128 + signal, as a shell reports a process that a signal ended; SIGTERM's where it came to another process."""
        return 128 + (self.received or signal.SIGTERM)
