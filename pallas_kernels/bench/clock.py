"""Timing on a machine that others may use: medians of calls that take turns."""
import contextlib
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator

import jax


def median_seconds(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall time of each call. They take turns, so that a slow minute of the machine slows all of them.

    A call must end when its work has (jax.block_until_ready). Each is made once before, untimed.
    """
    seconds = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread, and those it starts meanwhile, on one core, where the platform can."""
    if not hasattr(os, 'sched_setaffinity'):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def device_seconds(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median time that each call's kernels take on the device; its wall time on a device without such a timer.

    Calls take turns as in median_seconds. On NVIDIA GPUs the timer is CUPTI's, through Mosaic GPU's profiler.
    """
    if not has_device_timer():
        return median_seconds(calls, repeats)
    from jax.experimental.mosaic.gpu import profiler

    timed = {name: profiler.measure(_AsItIs(call)) for name, call in calls.items()}
    seconds = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in timed.items():
            milliseconds = call()[1]
            if milliseconds is None:
                raise RuntimeError(f'{name} ran no kernel on the device')
            if turn:
                seconds[name].append(milliseconds / 1e3)
    return {name: statistics.median(times) for name, times in seconds.items()}


class _AsItIs:
    """A call that the profiler runs each time: what is no jax.stages.Wrapped it would trace, and a call whose arguments
    are bound, or that is not JAX's, is done by then and leaves nothing to time."""

    def __init__(self, call: Callable[[], object]):
        self._call = call

    def __call__(self) -> object:
        return self._call()

    def trace(self):
        raise NotImplementedError

    lower = trace


def has_device_timer() -> bool:
    return jax.default_backend() == 'gpu'


def compiled(functions: dict[str, tuple[Callable, tuple]]) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """({name: call that ends when its work has}, {name: seconds to compile}) of {name: (function, arguments)}."""
    calls, seconds = {}, {}
    for name, (function, args) in functions.items():
        started = time.perf_counter()
        ready = jax.jit(function).lower(*args).compile()
        seconds[name] = time.perf_counter() - started
        calls[name] = functools.partial(_finish, ready, *args)
    return calls, seconds


def _finish(function: Callable, *args):
    return jax.block_until_ready(function(*args))
