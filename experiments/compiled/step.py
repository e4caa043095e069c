"""The train step of a configuration, with arguments that have shapes and places but no values."""
import math
from typing import NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp

from pallas_kernels.compile_tpu import topology_devices
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.packing import StepShape
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.parallel.mesh import device_mesh
from ssd4rec_jax.train.program import TrainProgram
from ssd4rec_jax.train.state import TrainState


class TracedStep(NamedTuple):
    """jaxpr, lowered: of the step. state: its first argument, shapes and shardings. coordinates: of each device in the
    torus (of a CPU device its number), in the program's order, which is that of the numbers in replica groups."""

    jaxpr: jax.extend.core.ClosedJaxpr
    lowered: jax.stages.Lowered
    state: TrainState
    coordinates: list[tuple[int, ...]]

    @property
    def state_bytes(self) -> int:
        """Bytes of parameters and optimiser state on each chip."""
        return sum(
            jnp.dtype(a.dtype).itemsize * math.prod(a.sharding.shard_shape(a.shape))
            for a in jax.tree.leaves(self.state)
        )


def pod_devices(topology: str) -> list:
    """The chips of a TPU topology such as v5e:16x16, which need not exist; ConfigError where libtpu knows none."""
    try:
        return topology_devices(topology)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = ' '.join(str(error).split())
        raise ConfigError(f'--topology={topology} is not one that libtpu knows, such as v5e:16x16: {reason}') from None


def trace_step(
    config: RunConfig, num_items: int, shape: StepShape, devices: list, model_shards: int
) -> TracedStep:
    """The step that a run with this configuration makes on these devices, traced for their platform, rows split over all of them.

    ConfigError where the rows or the mesh cannot be split over the devices.
    """
    mesh = device_mesh(devices, model_shards)
    program = TrainProgram(config, num_items, mesh, every_prefix=config.train.objective == 'one_pass')
    return TracedStep(
        program.trace(shape).jaxpr, program.lower(shape), program.like,
        [tuple(getattr(d, 'coords', (d.id,))) for d in mesh.devices.flat],
    )
