"""A module run as `python -m` runs it, in a process whose limits of time are for machines that do other things too.

    python -m tests.patient experiments.serve --model=DIR

A process that is halted for a minute is not taken for a dead one, and a client that is, not for a slow one.
"""
import dataclasses
import runpy
import sys

from ssd4rec_jax.commands import distributed
from ssd4rec_jax.serve import limits

SECONDS = 300


@dataclasses.dataclass(frozen=True)
class Patient(limits.Limits):
    """Limits of a service that leave time for everything, and have little compiled, as no test sends long histories."""

    history: int = 64
    header_seconds: float = SECONDS
    body_seconds: float = SECONDS
    request_seconds: float = SECONDS
    reading_seconds: float = SECONDS
    idle_seconds: float = SECONDS
    shutdown_seconds: float = SECONDS


def be_patient() -> None:
    """Have what this process starts from now on wait long."""
    distributed.HEARTBEAT_SECONDS, distributed.ALIKE_SECONDS = 60, 60  # A test waits for the first to pass.
    limits.Limits = Patient  # type: ignore[misc]


if __name__ == '__main__':
    be_patient()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
