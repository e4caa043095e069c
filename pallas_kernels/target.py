"""What a program is traced for: normally this process' own devices."""
import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import jax


class Target(NamedTuple):
    """platform: 'cpu', 'gpu' or 'tpu'. interpret: Pallas kernels run in their interpreter, on any machine."""

    platform: str
    interpret: bool = False


_ASKED: contextvars.ContextVar[Target | None] = contextvars.ContextVar('target', default=None)


def target() -> Target:
    """What is traced for now."""
    return _ASKED.get() or Target(jax.default_backend())


@contextlib.contextmanager
def tracing_for(platform: str, *, interpret: bool = False) -> Iterator[None]:
    """Inside, implementations and tilings are chosen for another platform: to compile for it ahead of time, or, with
    interpret, to try its kernels without it. A function that jit has already traced keeps what it was traced for.
    """
    token = _ASKED.set(Target(platform, interpret))
    try:
        yield
    finally:
        _ASKED.reset(token)
