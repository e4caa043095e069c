"""What changes during training, and the pure step that changes it."""
import functools
import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels.target import target
from ssd4rec_jax.data.packing import PackedBatch
from ssd4rec_jax.losses import softmax_loss_sum
from ssd4rec_jax.mesh import AXES, ITEM_TABLE, MODEL_AXIS, gathered_array, over_devices, shardings, specs
from ssd4rec_jax.model.draws import Draws
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.ssd4rec import SSD4Rec, mask_items
from ssd4rec_jax.table_shard import TableShard


class TrainState(NamedTuple):
    """One checkpoint's worth of arrays, placed as ssd4rec_jax.mesh says.

    params: nested dict of float32 arrays. opt_state: optax's. step: int32 scalar, optimiser steps made.
    epoch_loss, epoch_targets: float32 and int32 sums over the running epoch, so that its mean loss
    survives a restart.
    """

    params: dict
    opt_state: optax.OptState
    step: jax.Array
    epoch_loss: jax.Array
    epoch_targets: jax.Array


class Network(NamedTuple):
    """A model without its arrays: what a pure function needs beside `params`."""

    graphdef: nnx.GraphDef
    num_items: int

    def bind(self, params: dict) -> SSD4Rec:
        return nnx.merge(self.graphdef, nnx.State(params))

    def table(self, mesh: Mesh) -> TableShard:
        """How the item table lies on a mesh."""
        return TableShard(self.num_items + 1, mesh.shape[MODEL_AXIS])

    def split(self, params: dict, mesh: Mesh) -> dict:
        """params with the item table as its devices hold it together."""
        if mesh.shape[MODEL_AXIS] == 1:
            return params
        return {**params, ITEM_TABLE: self.table(mesh).pad(params[ITEM_TABLE])}

    def whole(self, params: dict) -> dict:
        """params as NumPy arrays on every process, the item table without padding."""
        gathered = jax.tree.map(gathered_array, params)
        if ITEM_TABLE not in params:
            return gathered
        return {**gathered, ITEM_TABLE: gathered[ITEM_TABLE][:self.num_items + 1]}


class Objective(NamedTuple):
    """What a step minimises.

    every_prefix: the batch has a target a token, and every prefix is read (see ssd4rec_jax.objective).
    """

    network: Network
    mask_ratio: float
    every_prefix: bool = False


def init_network(config, num_items: int, seed: int) -> tuple[Network, dict]:
    """A new model as (its structure, its parameters as a nested dict)."""
    graphdef, state = nnx.split(SSD4Rec(config, num_items, rngs=nnx.Rngs(seed)))
    return Network(graphdef, num_items), nnx.to_pure_dict(state)


def loss_and_gradients(
    objective: Objective, shard: TableShard, params: dict, batch: PackedBatch, seed, epoch, axes=AXES
):
    """Per-device body: summed loss, target count and summed gradients over all devices.

    shard, params: what this device holds of the item table and of all parameters. axes: the mesh axes that batches are split over.

    Gradients are taken of this device's loss sum with respect to device-varying parameters and summed
    explicitly. Differentiating through a psum instead gives gradients multiplied by the mesh size wherever
    replication is not tracked (shard_map with check_vma=False, pmap).

    On a CPU the rows follow one another: a step's temporaries are then those of one row, which its caches and its
    allocator bear far better.
    """
    # Of each device its own, and no longer one value known to be the same everywhere.
    varying = _by_parameter(lambda w, repeated: lax.pcast(w, repeated, to='varying') if repeated else w, params, axes)
    weights, batch, spread = _weights(shard, varying, batch)

    def local_loss(weights, batch):
        model = objective.network.bind(weights.params)
        layout = Layout.of(batch)
        draws = Draws.of(seed, epoch, layout)
        read = model.prefix_readouts if objective.every_prefix else model.readout
        readout = read(mask_items(batch.items, objective.mask_ratio, draws), layout, draws)
        table = model.item_embedding[...] if weights.scored is None else weights.scored
        return softmax_loss_sum(readout, table, batch.targets, batch.targets > 0, shard=shard)

    value_and_grad = jax.value_and_grad(local_loss)
    if target().platform == 'cpu' and len(batch.items) > 1:
        loss, grads = _sum_over_rows(functools.partial(value_and_grad, weights), batch, axes)
    else:
        loss, grads = value_and_grad(weights, batch)
    loss, count = lax.psum((loss, jnp.sum(batch.targets > 0)), axes)
    return loss, count, _by_parameter(lambda g, repeated: lax.psum(g, repeated), spread(grads), axes)


class _Weights(NamedTuple):
    """What a step's loss is differentiated by. scored: this device's part of the item table, where items are scored by
    that and read from rows of their own, params' table."""

    params: dict
    scored: jax.Array | None


def _weights(shard: TableShard, params: dict, batch: PackedBatch):
    """(weights, batch, gradients of weights -> of params).

    Where the table is split, its rows for the batch's items are fetched once, and the batch's items become their numbers
    among those; item 0, the mask, stays 0.
    """
    if shard.shards == 1:
        return _Weights(params, None), batch, lambda grads: grads.params
    part = params[ITEM_TABLE]
    ids, items = item_numbers(batch.items, shard)
    fetched, fetch_back = jax.vjp(lambda part: shard.fetch(part, ids), part)

    def spread(grads: _Weights) -> dict:
        (of_fetched,) = fetch_back(grads.params[ITEM_TABLE])
        return {**grads.params, ITEM_TABLE: grads.scored + of_fetched}

    return _Weights({**params, ITEM_TABLE: fetched}, part), batch._replace(items=items), spread


def item_numbers(items: jax.Array, shard: TableShard) -> tuple[jax.Array, jax.Array]:
    """(ids int32 [n], ascending from 0, that occur in items; items as numbers of those). n is fixed by the shapes: the
    rest of ids lies beyond the table."""
    ids = jnp.concatenate([jnp.zeros_like(items, shape=1), items.ravel()])
    size = min(len(ids), shard.rows)
    ids, numbers = jnp.unique(ids, size=size, fill_value=shard.padded, return_inverse=True)
    return ids, numbers[1:].reshape(items.shape)


def _by_parameter(f, params: dict, axes):
    """f(parameter or its gradient, those of the axes that repeat it: all but `model` for the item table)."""
    return jax.tree.map(lambda w, spec: f(w, tuple(a for a in axes if a not in spec)), params, specs(params))


def _sum_over_rows(f, batch: PackedBatch, axes):
    """Sum of f(batch of one row) over a batch's rows, one after another; f's values differ between devices."""

    def row(index):
        return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, index, 1), batch)

    def add(total, index):
        return jax.tree.map(jnp.add, total, f(row(index))), None

    zeros = jax.tree.map(lambda a: lax.pcast(jnp.zeros(a.shape, a.dtype), axes, to='varying'), jax.eval_shape(f, row(0)))
    return lax.scan(add, zeros, jnp.arange(len(batch.items)))[0]


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


def make_gradients(objective: Objective, mesh: Mesh, params):
    """(params, batch, seed, epoch) -> (loss sum, targets, gradients) over the mesh; not yet jitted.

    params: arrays or shapes, for their tree.
    """
    whole, rows, tree = PartitionSpec(), PartitionSpec(AXES), specs(params)
    return over_devices(
        functools.partial(loss_and_gradients, objective, objective.network.table(mesh)), mesh, (tree, rows, whole, whole), (whole, whole, tree)
    )


def make_train_step(objective: Objective, optimizer: optax.GradientTransformation, mesh: Mesh):
    """jit of (state, batch, seed, epoch) -> (state, mean loss of the step's targets); the state's buffers are reused."""

    def step(state: TrainState, batch: PackedBatch, seed, epoch):
        gradients = make_gradients(objective, mesh, state.params)
        loss, count, grads = gradients(state.params, batch, seed, epoch)
        new = update(optimizer, state, loss, count, grads)
        return lax.with_sharding_constraint(new, shardings(new, mesh)), loss / count

    return jax.jit(step, donate_argnums=0)


def new_state(params: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0's state."""
    return TrainState(params, optimizer.init(params), jnp.int32(0), jnp.float32(0), jnp.int32(0))


def init_state(network: Network, params: dict, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Step 0's state with these parameters (the table whole), placed on the mesh."""
    state = new_state(network.split(params, mesh), optimizer)
    return jax.device_put(state, shardings(state, mesh))


def create_state(config, num_items: int, seed: int, optimizer, mesh: Mesh) -> tuple[Network, TrainState]:
    """A new model and step 0's state, made on the devices where they belong: no process ever holds the whole table."""
    network, like = abstract_state(config, num_items, optimizer, mesh)

    def create():
        return new_state(network.split(init_network(config, num_items, seed)[1], mesh), optimizer)

    return network, jax.jit(create, out_shardings=jax.tree.map(lambda a: a.sharding, like))()


def abstract_state(config, num_items: int, optimizer, mesh: Mesh) -> tuple[Network, TrainState]:
    """The model's structure, and the shapes and places of a state's arrays (jax.ShapeDtypeStruct)."""
    networks = []

    def create():
        network, params = init_network(config, num_items, 0)
        networks.append(network)
        return new_state(network.split(params, mesh), optimizer)

    shapes = jax.eval_shape(create)
    return networks[0], jax.tree.map(
        lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), shapes, shardings(shapes, mesh)
    )


def parameters_sha256(params: dict) -> str:
    """Digest over names, dtypes, shapes and bytes of all parameters, names ascending."""
    digest = hashlib.sha256()
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for name in sorted(leaves):
        array = np.asarray(leaves[name])
        digest.update(f'{name} {array.dtype} {array.shape}\n'.encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()
