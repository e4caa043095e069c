"""What the processes of one run tell one another, and how they fail together.

All functions here except `several` and `is_first` are collective: every process must call them, in the same order. A
single process pays nothing for them.
"""
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssd4rec_jax.errors import ConfigError, UserError
from ssd4rec_jax.parallel.mesh import AXES

_MESSAGE_BYTES = 1024


def several() -> bool:
    """Whether the run has more than one process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes the files that only one process may write."""
    return jax.process_index() == 0


def sum_over_processes(array: np.ndarray) -> np.ndarray:
    """The elementwise sum of the processes' arrays, whose values must fit into the 32 bits that JAX has for them."""
    if not several():
        return array
    return np.asarray(multihost_utils.process_allgather(array)).sum(0, dtype=array.dtype)


def together(step: Callable[[], Any]) -> Any:
    """Runs step on every process and returns its result. A UserError on one process is raised on all of them."""
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
    """Runs step on the first process only and returns its result, a short JSON value, on all of them.

    A UserError that step raises is raised on every process.
    """
    if not several():
        return step()
    value = together(step if is_first() else lambda: None)
    return json.loads(_exchange(json.dumps(value))[0])


def agree(settings: dict[str, Any]) -> None:
    """Raises ConfigError on every process unless the settings are the same on all of them.

    settings: short JSON values by the names that the error is to mention.
    """
    if not several():
        return
    mine = {name: json.dumps(value, sort_keys=True) for name, value in settings.items()}
    if len(set(_exchange(hashlib.sha256(str(mine).encode()).hexdigest()))) == 1:
        return
    for name, value in mine.items():
        values = _exchange(value)
        if len(set(values)) > 1:
            told = ', '.join(f'{text} on process {number}' for number, text in enumerate(values))
            raise ConfigError(
                f'the processes of this run disagree on {name}: {told}. Start all with the same command and data'
            )


def _exchange(text: str) -> list[str]:
    """The texts of all processes in the order of their numbers; at most the first kilobyte of each."""
    line = np.zeros(_MESSAGE_BYTES, np.uint8)
    encoded = text.encode()[:_MESSAGE_BYTES]
    line[:len(encoded)] = np.frombuffer(encoded, np.uint8)
    return [bytes(row[row > 0]).decode(errors='ignore') for row in multihost_utils.process_allgather(line)]


class Votes:
    """Yes-or-no questions on which all processes must agree, answered by an all-reduce after each training step.

    No step waits for the all-reduce: where there are several processes, `ask` returns the answers to the questions of
    the call before.
    """

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self._asked: jax.Array | None = None
        self._sharding = NamedSharding(mesh, PartitionSpec(AXES))
        self._sum = jax.jit(lambda votes: jnp.sum(votes, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def ask(self, *answers: bool) -> tuple[bool, ...]:
        """For each question, whether any process answered yes; the same on all processes."""
        if not several():
            return answers
        mine = np.tile(np.asarray(answers, np.int32), (len(self.mesh.local_devices), 1))
        cast = jax.make_array_from_process_local_data(self._sharding, mine, (self.mesh.size, len(answers)))
        before, self._asked = self._asked, self._sum(cast)
        return tuple(bool(votes) for votes in np.asarray(before)) if before is not None else (False,) * len(answers)
