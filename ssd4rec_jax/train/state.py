"""The state that changes during training, and the pure step that changes it."""
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from ssd4rec_jax.data.packing import PackedBatch
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.model.network import Network, abstract_network, init_network
from ssd4rec_jax.parallel.mesh import ITEM_EMBEDDING, by_item, shardings
from ssd4rec_jax.train.gradients import make_gradients, make_sampled_gradients
from ssd4rec_jax.train.objective import Objective
from ssd4rec_jax.train.row_updates import SparseTableOptimizer, update_rows

Optimizer: TypeAlias = optax.GradientTransformation | SparseTableOptimizer


class TrainState(NamedTuple):
    """The arrays of one checkpoint, laid out on the devices as ssd4rec_jax.parallel.mesh says.

    params: a nested dict of float32 arrays (the item table may be bfloat16). opt_state: the optimiser's state.
    averaged: moving averages that answer in place of the params of the same names; empty without train.ema_decay.
    step: int32 scalar, the number of optimiser steps made.
    epoch_loss, epoch_targets: float32 and int32 scalars, the sums of loss and targets over the current epoch, so that
      the epoch's mean loss survives a restart.
    """

    params: dict
    opt_state: optax.OptState
    step: jax.Array
    epoch_loss: jax.Array
    epoch_targets: jax.Array
    averaged: dict = {}

    @property
    def answering(self) -> dict:
        """The parameters that the network is evaluated and answers with."""
        return {**self.params, **self.averaged}


def update(
    optimizer: optax.GradientTransformation, state: TrainState, loss: jax.Array, count: jax.Array, grads: dict
) -> TrainState:
    """The state after one optimiser step, from the loss and the gradients summed over `count` targets."""
    grads = jax.tree.map(lambda g: g / count, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return state._replace(
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        step=state.step + 1,
        # With JAX_ENABLE_X64 loss and count have 64 bits.
        epoch_loss=state.epoch_loss + loss.astype(state.epoch_loss.dtype),
        epoch_targets=state.epoch_targets + count.astype(state.epoch_targets.dtype),
    )


def make_train_step(
    objective: Objective, optimizer: Optimizer, mesh: Mesh, ema_decay: float = 0.0
) -> jax.stages.Wrapped:
    """The jitted step (state, batch, seed, epoch) -> (new state, mean loss over the step's targets).

    The step takes over the buffers of the state. seed and epoch are uint32 scalars. Where the loss is a sampled one, as
    it always is with a SparseTableOptimizer, the step takes the result of place_probability as its fifth argument.
    ema_decay: of the state's moving averages.
    """
    def finished(new: TrainState) -> TrainState:
        """The state with its averages brought up to date and its arrays where they belong."""
        # The average begins with few steps, so that it does not remember the parameters that were drawn.
        keep = jnp.minimum(ema_decay, (1 + new.step) / (10 + new.step))
        averaged = jax.tree.map(
            lambda mean, w: (keep * mean + (1 - keep) * w).astype(mean.dtype), new.averaged,
            {name: new.params[name] for name in new.averaged},
        )
        return lax.with_sharding_constraint(new := new._replace(averaged=averaged), shardings(new, mesh))

    def dense(state: TrainState, batch: PackedBatch, seed, epoch, *probability):
        if objective.loss.samples:
            gradients = make_sampled_gradients(objective, mesh, state.params)
            loss, count, grads, rows = gradients(state.params, *probability, batch, seed, epoch, state.step)
            table = jnp.zeros_like(state.params[ITEM_EMBEDDING]).at[rows.ids].add(rows.gradients, mode='drop')
            grads = {**grads, ITEM_EMBEDDING: table}
        else:
            loss, count, grads = make_gradients(objective, mesh, state.params)(state.params, batch, seed, epoch)
        new = update(optimizer, state, loss, count, grads)
        return finished(new), loss / count

    def sparse(state: TrainState, batch: PackedBatch, seed, epoch, probability):
        gradients = make_sampled_gradients(objective, mesh, state.params)
        loss, count, grads, rows = gradients(state.params, probability, batch, seed, epoch, state.step)
        table, network = state.params[ITEM_EMBEDDING], {n: w for n, w in state.params.items() if n != ITEM_EMBEDDING}
        of_network = state._replace(params=network, opt_state=state.opt_state['network'])
        new = update(optimizer.network, of_network, loss, count, grads)
        key = jax.random.fold_in(jax.random.key(seed + np.uint32(1)), state.step)
        rows = rows._replace(gradients=rows.gradients / count)
        table, squares = update_rows(
            mesh, objective.network.shard(mesh), table, state.opt_state[ITEM_EMBEDDING], rows,
            optimizer.rate(state.step), key,
        )
        new = new._replace(
            params={**new.params, ITEM_EMBEDDING: table}, opt_state={'network': new.opt_state, ITEM_EMBEDDING: squares}
        )
        return finished(new), loss / count

    return jax.jit(sparse if isinstance(optimizer, SparseTableOptimizer) else dense, donate_argnums=0)


def place_probability(counts: np.ndarray, network: Network, mesh: Mesh) -> jax.Array:
    """The probability that each item is a target: float32, with the padded rows and the sharding of the item table.

    counts: [items + 1], how often each item is a target.
    """
    padded = np.zeros(network.shard(mesh).padded, np.float32)
    padded[:len(counts)] = counts / counts.sum()
    return jax.make_array_from_callback(padded.shape, by_item(mesh), lambda part: padded[part])


def new_state(params: dict, optimizer: Optimizer, averages: bool = False) -> TrainState:
    """The state of step 0; averages: whether moving averages are kept, of all that an optax optimiser updates."""
    left_out = {ITEM_EMBEDDING} if isinstance(optimizer, SparseTableOptimizer) else set()
    averaged = {name: jax.tree.map(jnp.copy, w) for name, w in params.items() if averages and name not in left_out}
    return TrainState(params, optimizer.init(params), jnp.int32(0), jnp.float32(0), jnp.int32(0), averaged)


def init_state(
    network: Network, params: dict, optimizer: Optimizer, mesh: Mesh, averages: bool = False
) -> TrainState:
    """The state of step 0 on the mesh, with the given parameters; their item table is whole and not padded."""
    state = new_state(network.split(params, mesh), optimizer, averages)
    return jax.device_put(state, shardings(state, mesh))


def create_state(
    config: Any, num_items: int, seed: int, optimizer: Optimizer, mesh: Mesh, averages: bool = False
) -> tuple[Network, TrainState]:
    """A new network and its state of step 0.

    config: the network's settings. The arrays are created on the devices where they belong, so that no process ever
    holds the whole item table.
    """
    network, like = abstract_state(config, num_items, optimizer, mesh, averages)

    def create():
        return new_state(network.split(init_network(config, num_items, seed)[1], mesh), optimizer, averages)

    return network, jax.jit(create, out_shardings=jax.tree.map(lambda a: a.sharding, like))()


def abstract_state(
    config: Any, num_items: int, optimizer: Optimizer, mesh: Mesh, averages: bool = False
) -> tuple[Network, TrainState]:
    """The network's structure, and a state that holds jax.ShapeDtypeStruct with shardings instead of arrays.

    Raises ConfigError where the item table is bfloat16 and the optimiser would update all of it.
    """
    sparse = isinstance(optimizer, SparseTableOptimizer)
    if getattr(config, 'table_dtype', 'float32') == 'bfloat16' and not sparse:
        raise ConfigError(
            f'model.table_dtype=bfloat16 needs train.loss=sampled and train.table_optimizer=adagrad or auto: all of a '
            f'table (of {num_items:,} items) is updated in float32'
        )
    network, params = abstract_network(config, num_items, mesh)
    shapes = jax.eval_shape(lambda params: new_state(params, optimizer, averages), params)
    return network, jax.tree.map(
        lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes, shardings(shapes, mesh)
    )
