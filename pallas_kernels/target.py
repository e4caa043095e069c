"""The platform that programs are traced for. Normally it is the platform of this process's own devices."""
import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import jax


class Target(NamedTuple):
    """What a program is traced for.

    platform: 'cpu', 'gpu' or 'tpu'. interpret: whether Pallas kernels run in their interpreter, which works on any
    machine.
    """

    platform: str
    interpret: bool = False


_ASKED: contextvars.ContextVar[Target | None] = contextvars.ContextVar('target', default=None)


def target() -> Target:
    """The current target: that of the innermost `tracing_for`, or else the platform of JAX's default backend."""
    return _ASKED.get() or Target(jax.default_backend())


@contextlib.contextmanager
def tracing_for(platform: str, *, interpret: bool = False) -> Iterator[None]:
    """Choose implementations and tilings for another platform, for everything that is traced inside the `with` block.

    This serves to compile for a platform ahead of time, or, with interpret, to try its kernels without the device. A
    function that jit has traced before keeps the target that it was traced for.

    Args:
      platform: 'cpu', 'gpu' or 'tpu'.
      interpret: run Pallas kernels in their interpreter.
    """
    token = _ASKED.set(Target(platform, interpret))
    try:
        yield
    finally:
        _ASKED.reset(token)
