"""The train step of a configuration, with arguments that have shapes and places but no values."""
import functools
import math
from typing import NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp

from experiments.config import ExperimentConfig
from pallas_kernels import tracing_for
from pallas_kernels.compile_tpu import topology_devices
from ssd4rec_jax.data.packing import PackedBatch, StepShape
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.mesh import by_item, by_rows, device_mesh
from ssd4rec_jax.optimizer import make_optimizer
from ssd4rec_jax.gradients import Objective
from ssd4rec_jax.train_state import TrainState, abstract_state, make_train_step


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
    config: ExperimentConfig, num_items: int, shape: StepShape, devices: list, model_shards: int
) -> TracedStep:
    """The step that a run with this configuration makes on these devices, traced for their platform, rows split over all of them.

    ConfigError where the rows or the mesh cannot be split over the devices.
    """
    if shape.rows % len(devices):
        raise ConfigError(f'data.rows_per_step={shape.rows} must be a multiple of the {len(devices)} devices')
    mesh = device_mesh(devices, model_shards)
    optimizer, negatives = make_optimizer(config.train, num_items), config.train.negatives(num_items)
    every_prefix = config.train.objective == 'one_pass'
    with tracing_for(devices[0].platform):
        network, state = abstract_state(config.model, num_items, optimizer, mesh)
        spec = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32, sharding=by_rows(mesh))
        by_token, by_segment = spec((shape.rows, shape.tokens)), spec((shape.rows, shape.segments))
        batch = PackedBatch(
            items=by_token, segment_ids=by_token, starts=by_segment, lengths=by_segment,
            targets=by_token if every_prefix else by_segment, example_ids=by_segment,
        )
        number = jax.ShapeDtypeStruct((), jnp.uint32)
        held = jax.ShapeDtypeStruct((network.table(mesh).padded,), jnp.float32, sharding=by_item(mesh))
        probability = [held] if negatives else []
        step = make_train_step(Objective(network, config.data.mask_ratio, every_prefix, negatives), optimizer, mesh)
        traced = step.trace(state, batch, number, number, *probability)
        lowered = traced.lower()
    return TracedStep(traced.jaxpr, lowered, state, [tuple(getattr(d, 'coords', (d.id,))) for d in mesh.devices.flat])
