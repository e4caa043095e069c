"""The train step of a configuration, traced and lowered for arguments that have shapes and shardings but no values."""
import math
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp

from pallas_kernels.compile_tpu import topology_devices
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.config.train import IN_ONE_PASS
from ssd4rec_jax.data.packing import PackedBatch, StepShape
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.parallel.mesh import device_mesh
from ssd4rec_jax.train.program import WAITING_BATCHES, TrainProgram
from ssd4rec_jax.train.state import TrainState


class TracedStep(NamedTuple):
    """A train step before it is compiled.

    jaxpr, lowered: its two forms. state, batch: what it changes and reads, as shapes and shardings.
    coordinates: the position of each device in the torus (for a CPU device, its number), in the order of the program's
      device numbers, which replica groups use.
    """

    jaxpr: jax.extend.core.ClosedJaxpr
    lowered: jax.stages.Lowered
    state: TrainState
    batch: PackedBatch
    coordinates: list[tuple[int, ...]]

    @property
    def state_bytes(self) -> int:
        """The bytes of parameters and optimiser state on each chip."""
        return _bytes_on_chip(self.state)

    @property
    def waiting_bytes(self) -> int:
        """The bytes on each chip of the batches that wait there for their steps."""
        return WAITING_BATCHES * _bytes_on_chip(self.batch)


def _bytes_on_chip(arrays: Any) -> int:
    return sum(
        jnp.dtype(a.dtype).itemsize * math.prod(a.sharding.shard_shape(a.shape)) for a in jax.tree.leaves(arrays)
    )


def pod_devices(topology: str) -> list:
    """The chips of a TPU topology such as v5e:16x16, which need not exist; ConfigError if libtpu does not know it."""
    try:
        return topology_devices(topology)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = ' '.join(str(error).split())
        raise ConfigError(f'--topology={topology} is not one that libtpu knows, such as v5e:16x16: {reason}') from None


def trace_step(
    config: RunConfig, num_items: int, shape: StepShape, devices: list, model_shards: int
) -> TracedStep:
    """The step that a run with this configuration would make on these devices, traced for their platform.

    num_items: the size of the catalogue. shape: of the packed batch, whose rows are split over all devices.
    model_shards: the number of devices that share the item table. Raises ConfigError where the devices cannot be split
    in this way, or cannot share the rows evenly.
    """
    mesh = device_mesh(devices, model_shards)
    program = TrainProgram(config, num_items, mesh, every_prefix=config.train.objective in IN_ONE_PASS)
    _, batch, *_ = program.abstract_arguments(shape)
    return TracedStep(
        program.trace(shape).jaxpr, program.lower(shape), program.like, batch,
        [tuple(getattr(d, 'coords', (d.id,))) for d in mesh.devices.flat],
    )
