"""What changes during training, and the pure step that changes it."""
from typing import Any, NamedTuple

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

Optimizer = optax.GradientTransformation | SparseTableOptimizer


class TrainState(NamedTuple):
    """One checkpoint's worth of arrays, placed as ssd4rec_jax.parallel.mesh says.

    params: nested dict of float32 arrays. opt_state: optax's. step: int32 scalar, optimiser steps made.
    epoch_loss, epoch_targets: float32 and int32 sums over the running epoch, so that its mean loss
    survives a restart.
    """

    params: dict
    opt_state: optax.OptState
    step: jax.Array
    epoch_loss: jax.Array
    epoch_targets: jax.Array


def update(optimizer: optax.GradientTransformation, state: TrainState, loss, count, grads) -> TrainState:
    """The state after one optimiser step with summed loss and gradients of `count` targets."""
    grads = jax.tree.map(lambda g: g / count, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return TrainState(
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        step=state.step + 1,
        epoch_loss=state.epoch_loss + loss,
        epoch_targets=state.epoch_targets + count,
    )


def make_train_step(objective: Objective, optimizer: Optimizer, mesh: Mesh):
    """jit of (state, batch, seed, epoch) -> (state, mean loss of the step's targets); the state's buffers are reused.

    With a SparseTableOptimizer the loss is the sampled softmax's, and place_probability gives a fifth argument.
    """

    def dense(state: TrainState, batch: PackedBatch, seed, epoch):
        loss, count, grads = make_gradients(objective, mesh, state.params)(state.params, batch, seed, epoch)
        new = update(optimizer, state, loss, count, grads)
        return lax.with_sharding_constraint(new, shardings(new, mesh)), loss / count

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
            optimizer.table_learning_rate, key,
        )
        new = new._replace(
            params={**new.params, ITEM_EMBEDDING: table}, opt_state={'network': new.opt_state, ITEM_EMBEDDING: squares}
        )
        return lax.with_sharding_constraint(new, shardings(new, mesh)), loss / count

    return jax.jit(sparse if isinstance(optimizer, SparseTableOptimizer) else dense, donate_argnums=0)


def place_probability(counts: np.ndarray, network: Network, mesh: Mesh) -> jax.Array:
    """Each item's probability to be a target, float32 with the table's rows and place, from counts int64 [items + 1]."""
    padded = np.zeros(network.shard(mesh).padded, np.float32)
    padded[:len(counts)] = counts / counts.sum()
    return jax.make_array_from_callback(padded.shape, by_item(mesh), lambda part: padded[part])


def new_state(params: dict, optimizer: Optimizer) -> TrainState:
    """Step 0's state."""
    return TrainState(params, optimizer.init(params), jnp.int32(0), jnp.float32(0), jnp.int32(0))


def init_state(network: Network, params: dict, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """Step 0's state with these parameters (the table whole), placed on the mesh."""
    state = new_state(network.split(params, mesh), optimizer)
    return jax.device_put(state, shardings(state, mesh))


def create_state(config: Any, num_items: int, seed: int, optimizer: Optimizer, mesh: Mesh) -> tuple[Network, TrainState]:
    """A new model and step 0's state, made on the devices where they belong: no process ever holds the whole table."""
    network, like = abstract_state(config, num_items, optimizer, mesh)

    def create():
        return new_state(network.split(init_network(config, num_items, seed)[1], mesh), optimizer)

    return network, jax.jit(create, out_shardings=jax.tree.map(lambda a: a.sharding, like))()


def abstract_state(config: Any, num_items: int, optimizer: Optimizer, mesh: Mesh) -> tuple[Network, TrainState]:
    """The model's structure, and the shapes and places of a state's arrays (jax.ShapeDtypeStruct)."""
    sparse = isinstance(optimizer, SparseTableOptimizer)
    if getattr(config, 'table_dtype', 'float32') == 'bfloat16' and not sparse:
        raise ConfigError(
            f'model.table_dtype=bfloat16 needs train.loss=sampled: the full softmax (of {num_items:,} items) updates its '
            'table in float32'
        )
    network, params = abstract_network(config, num_items, mesh)
    shapes = jax.eval_shape(lambda params: new_state(params, optimizer), params)
    return network, jax.tree.map(
        lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes, shardings(shapes, mesh)
    )
