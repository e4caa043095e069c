"""The train step as a program: everything about it that a configuration, a catalogue and a mesh decide."""
import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pallas_kernels.target import tracing_for
from ssd4rec_jax.config.plugs import features_read
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.packing import PackedBatch, StepShape
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.model.network import Network
from ssd4rec_jax.parallel.mesh import MODEL_AXIS, by_item, by_rows, replicated
from ssd4rec_jax.train.losses import make_loss
from ssd4rec_jax.train.objective import Objective
from ssd4rec_jax.train.optimizer import learning_rate_schedule, make_optimizer
from ssd4rec_jax.train.small_arrays import SmallArrays
from ssd4rec_jax.train.state import (
    TrainState,
    abstract_state,
    create_state,
    init_state,
    make_train_step,
    place_probability,
)

# While a step runs, the next one is in the queue, and the batch of the one after it is put on the devices.
WAITING_BATCHES = 2

# Without its optimisations XLA's CPU backend compiles a step in a fifth of the time, and the step takes three times as
# long, which pays for this many steps (docs/decisions/recommending.md).
HASTY_STEPS = 40
HASTE: dict[str, str | bool] = {'xla_backend_optimization_level': '0'}
# Where states are handed on with their small arrays in one vector.
PACKED_ON = frozenset({'gpu'})
_LESS_FUSION: dict[str, str | bool] = {'xla_cpu_use_fusion_emitters': False}


class TrainProgram:
    """The one place where a train step is assembled; trainer, benchmarks and the pod compiler all take it from here.

    network: the network's structure.
    like: a state that holds shapes, dtypes and shardings (jax.ShapeDtypeStruct) instead of arrays.
    objective, optimizer, schedule: what a step minimises, how, and the learning rate for each step.
    step: the jitted function (state, batch, seed, epoch, *constants) -> (state, mean loss); it takes over the buffers
      of the state. What is compiled of it takes and returns states as `carried` gives them.

    The program is made for the platform of the mesh's devices, which need not be devices of this machine.
    """

    def __init__(
        self, config: RunConfig, num_items: int, mesh: Mesh, *, every_prefix: bool, network: Any = None,
        steps_per_epoch: int = 0,
    ):
        """network: replaces the configured network and uses the same parameters (the baseline of a benchmark).

        steps_per_epoch: needed where train.schedule spans all epochs.
        """
        if config.train.objective == 'cloze' and not every_prefix:
            raise ConfigError('train.objective=cloze: no step of whole histories is planned here; set it to prefix')
        self.config, self.num_items, self.mesh = config, num_items, mesh
        has_seen = getattr(config.model, 'seen_bias', False)
        loss = make_loss(config.train, config.loss, num_items, mesh.shape[MODEL_AXIS], has_seen=has_seen)
        by_row = loss.samples and config.train.table_optimizer != 'adam'
        self.optimizer = make_optimizer(
            config.train, sparse_table=by_row, has_seen=has_seen, steps_per_epoch=steps_per_epoch
        )
        self.schedule = learning_rate_schedule(config.train, steps_per_epoch)
        self._averages = config.train.ema_decay > 0
        self.network: Network
        self.like: TrainState
        with self._platform():
            self.network, self.like = abstract_state(config.model, num_items, self.optimizer, mesh, self._averages)
        self.network = self.network if network is None else network
        negatives = config.train.num_negatives if loss.samples else 0
        last_alone = config.train.last_alone if config.train.objective == 'cloze' else None
        self.objective = Objective(self.network, config.data.mask_ratio, every_prefix, loss, negatives, last_alone)
        self.step = make_train_step(self.objective, self.optimizer, mesh, config.train.ema_decay)
        small = SmallArrays(self.like, mesh)
        self._small = small if mesh.devices.flat[0].platform in PACKED_ON else None
        self._pack, self._unpack = jax.jit(small.pack), jax.jit(small.unpack)

    def create_state(self) -> TrainState:
        """The state of step 0, with parameters drawn from train.seed on the devices where they belong."""
        config = self.config
        return create_state(
            config.model, self.num_items, config.train.seed, self.optimizer, self.mesh, self._averages
        )[1]

    def init_state(self, params: dict) -> TrainState:
        """The state of step 0 with the given parameters, whose item table is whole and not padded."""
        return init_state(self.network, params, self.optimizer, self.mesh, self._averages)

    def carried(self, state: TrainState) -> Any:
        """The state in the form in which compiled steps hand it on; large arrays are the same."""
        return self._pack(state) if self._small else state

    def state_of(self, carried: Any) -> TrainState:
        """The inverse of `carried`."""
        return self._unpack(carried) if self._small else carried

    def constants(self, target_counts: np.ndarray) -> list[jax.Array]:
        """The arguments that a step takes after seed and epoch.

        target_counts: [num_items + 1], how often each item is a target.
        """
        if not self.objective.loss.samples:
            return []
        return [place_probability(target_counts, self.network, self.mesh)]

    def abstract_arguments(self, shape: StepShape) -> tuple:
        """The compiled step's arguments for batches of this shape, as shapes and shardings without values.

        Raises ConfigError where the devices cannot share the rows evenly.
        """
        if shape.rows % self.mesh.size:
            raise ConfigError(f'data.rows_per_step={shape.rows} must be a multiple of the {self.mesh.size} devices')
        spec = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32, sharding=by_rows(self.mesh))
        by_token, by_segment = spec((shape.rows, shape.tokens)), spec((shape.rows, shape.segments))
        values = jax.ShapeDtypeStruct(by_token.shape, jnp.float32, sharding=by_rows(self.mesh))
        batch = PackedBatch(
            items=by_token, segment_ids=by_token, starts=by_segment, lengths=by_segment,
            targets=by_token if self.objective.every_prefix else by_segment, example_ids=by_segment,
            features=dict.fromkeys(features_read(self.config.model), values) or None,
        )
        number = jax.ShapeDtypeStruct((), jnp.uint32, sharding=replicated(self.mesh))
        held = jax.ShapeDtypeStruct((self.network.shard(self.mesh).padded,), jnp.float32, sharding=by_item(self.mesh))
        first = self._small.carried_like if self._small else self.like
        return first, batch, number, number, *([held] if self.objective.loss.samples else [])

    def trace(self, shape: StepShape) -> jax.stages.Traced:
        """The step for batches of this shape, traced for the mesh's platform."""
        with self._platform():
            return self._step().trace(*self.abstract_arguments(shape))

    def lower(self, shape: StepShape) -> jax.stages.Lowered:
        """The step for batches of this shape, lowered for the mesh's platform."""
        return self.trace(shape).lower()

    def compile(self, shape: StepShape, *, steps: int | None = None) -> jax.stages.Compiled:
        """The step for batches of this shape, compiled for the mesh's devices.

        steps: how often it will be run, where that is known. On a CPU few steps are compiled in haste.
        """
        lowered = self.lower(shape)
        if steps is None or steps > HASTY_STEPS or self.mesh.devices.flat[0].platform != 'cpu':
            return lowered.compile()
        try:
            return lowered.compile(compiler_options=HASTE | _LESS_FUSION)
        except jax.errors.JaxRuntimeError:  # a version that has no such option any more
            return lowered.compile(compiler_options=HASTE)

    def _step(self) -> jax.stages.Wrapped:
        """The step on states as they are handed on."""
        if self._small is None:
            return self.step
        small = self._small

        def packed(carried, *arguments):
            state, loss = self.step(small.unpack(carried), *arguments)
            return small.pack(state), loss

        return jax.jit(packed, donate_argnums=0)

    def _platform(self) -> contextlib.AbstractContextManager[None]:
        return tracing_for(self.mesh.devices.flat[0].platform)
