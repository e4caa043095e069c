"""What the processes of one run tell each other, and how they fail together.

Everything here is collective: all processes call it in the same order. Of a single process it asks nothing.
"""
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from ssd4rec_jax.errors import ConfigError, UserError
from ssd4rec_jax.parallel.mesh import AXES

_MESSAGE_BYTES = 1024


def several() -> bool:
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes what only one may write."""
    return jax.process_index() == 0


def sum_over_processes(array: np.ndarray) -> np.ndarray:
    """Elementwise sum of the processes' arrays, whose values JAX can hold in 32 bits."""
    if not several():
        return array
    return np.asarray(multihost_utils.process_allgather(array)).sum(0, dtype=array.dtype)


def together(step: Callable[[], Any]) -> Any:
    """What step() returns, run on every process; a UserError on one becomes one on all, with its message."""
    if not several():
        return step()
    value, error = None, None
    try:
        value = step()
    except UserError as failure:
        error = failure
    messages = _exchange(str(error) if error else '')
    if error:
        raise error
    for number, message in enumerate(messages):
        if message:
            raise UserError(f'process {number} of {len(messages)}: {message}')
    return value


def on_first(step: Callable[[], Any]) -> Any:
    """What step() returns (a short JSON value), run on the first process alone; a UserError there is one on all."""
    if not several():
        return step()
    value = together(step if is_first() else lambda: None)
    return json.loads(_exchange(json.dumps(value))[0])


def agree(settings: dict[str, Any]) -> None:
    """ConfigError on every process if the processes' settings (JSON values, short) are not the same."""
    if not several():
        return
    mine = {name: json.dumps(value, sort_keys=True) for name, value in settings.items()}
    if len(set(_exchange(hashlib.sha256(str(mine).encode()).hexdigest()))) == 1:
        return
    for name, value in mine.items():
        values = _exchange(value)
        if len(set(values)) > 1:
            told = ', '.join(f'{text} on process {number}' for number, text in enumerate(values))
            raise ConfigError(f'the processes of this run disagree on {name}: {told}. Start all with the same command and data')


def _exchange(text: str) -> list[str]:
    """Each process's text (its first kilobyte), by process."""
    line = np.zeros(_MESSAGE_BYTES, np.uint8)
    encoded = text.encode()[:_MESSAGE_BYTES]
    line[:len(encoded)] = np.frombuffer(encoded, np.uint8)
    return [bytes(row[row > 0]).decode(errors='ignore') for row in multihost_utils.process_allgather(line)]


class Votes:
    """Yes-or-no questions that all processes have to decide alike, carried by an all-reduce behind each training step.

    No step waits for it: what `ask` returns was asked a step ago, when there are several processes.
    """

    def __init__(self, mesh):
        self.mesh = mesh
        self._asked = None
        self._sharding = NamedSharding(mesh, PartitionSpec(AXES))
        self._sum = jax.jit(lambda votes: jnp.sum(votes, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def ask(self, *answers: bool) -> tuple[bool, ...]:
        """For each question, whether any process says yes; all processes hear the same."""
        if not several():
            return answers
        mine = np.tile(np.asarray(answers, np.int32), (len(self.mesh.local_devices), 1))
        cast = jax.make_array_from_process_local_data(self._sharding, mine, (self.mesh.size, len(answers)))
        before, self._asked = self._asked, self._sum(cast)
        return tuple(bool(votes) for votes in np.asarray(before)) if before is not None else (False,) * len(answers)
