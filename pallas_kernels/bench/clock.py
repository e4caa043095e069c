"""Timing on a machine that others may use: the medians of calls that take turns."""
import contextlib
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

Call = Callable[[], object]
Key = TypeVar('Key')


def median_seconds(calls: dict[Key, Call], repeats: int) -> dict[Key, float]:
    """The median wall time of each call, in seconds.

    The calls take turns, so that a slow minute of the machine slows all of them. Each call is made once before, without
    being timed.

    Args:
      calls: each must end when its work has ended (jax.block_until_ready).
      repeats: timed calls of each.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread, and the threads that it starts inside the `with` block, on one core, where the platform can."""
    if not hasattr(os, 'sched_setaffinity'):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def device_seconds(calls: dict[Key, Call], repeats: int) -> dict[Key, float]:
    """The median time that the kernels of each call take on the device, in seconds.

    The calls take turns as in median_seconds. On NVIDIA GPUs the timer is CUPTI's, through Mosaic GPU's profiler. On a
    device without such a timer the result is the wall time. Raises RuntimeError if a call runs no kernel on the device.
    """
    if not has_device_timer():
        return median_seconds(calls, repeats)
    from jax.experimental.mosaic.gpu import profiler

    timed = {name: profiler.measure(_AsItIs(call)) for name, call in calls.items()}
    seconds: dict[Key, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in timed.items():
            milliseconds = call()[1]
            if milliseconds is None:
                raise RuntimeError(f'{name} ran no kernel on the device')
            if turn:
                seconds[name].append(milliseconds / 1e3)
    return {name: statistics.median(times) for name, times in seconds.items()}


class _AsItIs:
    """A call that Mosaic GPU's profiler runs as it is, each time that it measures.

    The profiler would trace a function that is not a jax.stages.Wrapped. A call whose arguments are bound, or that is
    not JAX's, would do its work during that trace, and nothing would be left to time.
    """

    def __init__(self, call: Call) -> None:
        self._call = call

    def __call__(self) -> object:
        return self._call()

    def trace(self) -> object:
        raise NotImplementedError

    lower = trace


def has_device_timer() -> bool:
    """Whether device_seconds measures on the device: so far only on NVIDIA GPUs."""
    return jax.default_backend() == 'gpu'


def compiled(functions: dict[str, tuple[Callable, tuple]]) -> tuple[dict[str, Call], dict[str, float]]:
    """Compile functions for their arguments.

    Args:
      functions: {name: (function, arguments)}.

    Returns ({name: a call without arguments that ends when its work has ended}, {name: seconds to compile}).
    """
    calls: dict[str, Call] = {}
    seconds: dict[str, float] = {}
    for name, (function, args) in functions.items():
        started = time.perf_counter()
        ready = jax.jit(function).lower(*args).compile()
        seconds[name] = time.perf_counter() - started
        calls[name] = functools.partial(_finish, ready, *args)
    return calls, seconds


def _finish(function: Callable, *args: Any) -> object:
    return jax.block_until_ready(function(*args))
