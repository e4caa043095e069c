"""A step's loss and raw gradients, on any mesh."""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels.target import target
from ssd4rec_jax.data.packing import PackedBatch
from ssd4rec_jax.model.draws import Draws, mask_items
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.parallel.mesh import AXES, DATA_AXIS, ITEM_EMBEDDING, MODEL_AXIS, over_devices, specs
from ssd4rec_jax.parallel.table_shard import TableShard, item_numbers
from ssd4rec_jax.train.objective import Objective
from ssd4rec_jax.train.sampled_softmax import draw_negatives


class RowGradients(NamedTuple):
    """Gradients of some rows of the item table: ids int32 [n], gradients float32 [n, D]; ids beyond the table mean none.

    A device's ids ascend without repetition; of several devices one after the other, so that an id may come again.
    """

    ids: jax.Array
    gradients: jax.Array


def loss_and_gradients(
    objective: Objective, shard: TableShard, params: dict, batch: PackedBatch, seed, epoch, axes=AXES
):
    """Per-device body: summed loss, target count and summed gradients over all devices, with the full softmax.

    shard, params: what this device holds of the item table and of all parameters. axes: the mesh axes that batches are
    split over.
    """
    varying = _own(params, axes)
    if shard.shards == 1:
        loss, grads = _over_rows(_loss_of(objective, shard, seed, epoch), _Weights(varying, None), batch, axes)
        grads = grads.params
    else:
        # The table's rows for the batch's items are fetched once, and its items become their numbers among those.
        part = varying[ITEM_EMBEDDING]
        ids, items = item_numbers(shard, batch.items)
        fetched, fetch_back = jax.vjp(lambda part: shard.fetch(part, ids), part)
        weights = _Weights({**varying, ITEM_EMBEDDING: fetched}, part)
        f = _loss_of(objective, shard, seed, epoch)
        loss, grads = _over_rows(f, weights, batch._replace(items=items), axes)
        (of_fetched,) = fetch_back(grads.params[ITEM_EMBEDDING])
        grads = {**grads.params, ITEM_EMBEDDING: grads.scored + of_fetched}
    loss, count = lax.psum((loss, jnp.sum(batch.targets > 0)), axes)
    return loss, count, _summed(grads, axes)


def sampled_loss_and_gradients(
    objective: Objective, shard: TableShard, params: dict, probability, batch: PackedBatch, seed, epoch, step
):
    """The same with the sampled softmax: (loss, count, gradients of all but the item table, this device's RowGradients).

    probability float32 [held]: of each of this device's items to be a target. Everything of the table that a step
    needs is fetched once, and the model and the loss see no other row.
    """
    varying = _own(params, AXES)
    negatives = draw_negatives(seed, step, objective.negatives, shard.rows)
    ids, items, targets, negatives = item_numbers(shard, batch.items, batch.targets, negatives)
    rows = shard.fetch(varying[ITEM_EMBEDDING], ids).astype(jnp.float32)
    chance = shard.fetch(lax.pcast(probability, DATA_AXIS, to='varying'), ids)

    def loss_of(weights, batch):
        readout, table = _readout(objective, weights.params, batch, seed, epoch)
        # A target's number is 0 where there is none: then it is that of item 0, which is never a target.
        losses = objective.loss.of(
            readout, table, batch.targets, batch.targets > 0, negatives, objective.negatives / shard.rows, chance
        )
        return jnp.sum(losses)

    weights = _Weights({**varying, ITEM_EMBEDDING: rows}, None)
    loss, grads = _over_rows(loss_of, weights, batch._replace(items=items, targets=targets), AXES)
    network = {name: grad for name, grad in grads.params.items() if name != ITEM_EMBEDDING}
    loss, count = lax.psum((loss, jnp.sum(batch.targets > 0)), AXES)
    return loss, count, _summed(network, AXES), RowGradients(ids, grads.params[ITEM_EMBEDDING])


class _Weights(NamedTuple):
    """What a step's loss is differentiated by. scored: this device's part of the item table, where items are scored by
    that and read from rows of their own, params' table."""

    params: dict
    scored: jax.Array | None


def _readout(objective: Objective, params: dict, batch: PackedBatch, seed, epoch):
    """(what the model says of the batch with items masked, its item table)."""
    model = objective.network.bind(params)
    layout = Layout.of(batch)
    draws = Draws.of(seed, epoch, layout)
    read = model.prefix_readouts if objective.every_prefix else model.readout
    return read(mask_items(batch.items, objective.mask_ratio, draws), layout, draws), model.item_embedding[...]


def _loss_of(objective: Objective, shard: TableShard, seed, epoch):
    def loss(weights: _Weights, batch: PackedBatch):
        readout, table = _readout(objective, weights.params, batch, seed, epoch)
        scored = table if weights.scored is None else weights.scored
        return objective.loss.of(readout, scored, batch.targets, batch.targets > 0, shard=shard)

    return loss


def _own(params: dict, axes) -> dict:
    """The parameters as values of each device's own.

    Gradients are taken of a device's loss sum with respect to these and summed explicitly. Differentiating through a psum
    instead gives gradients multiplied by the mesh size wherever replication is not tracked (shard_map with
    check_vma=False, pmap).
    """
    return _by_parameter(lambda w, repeated: lax.pcast(w, repeated, to='varying') if repeated else w, params, axes)


def _summed(grads: dict, axes) -> dict:
    return _by_parameter(lambda g, repeated: lax.psum(g, repeated), grads, axes)


def _by_parameter(f, params: dict, axes):
    """f(parameter or its gradient, those of the axes that repeat it: all but `model` for the item table)."""
    return jax.tree.map(lambda w, spec: f(w, tuple(a for a in axes if a not in spec)), params, specs(params))


def _over_rows(loss, weights: _Weights, batch: PackedBatch, axes):
    """Value and gradient of loss(weights, batch).

    On a CPU the rows follow one another: a step's temporaries are then those of one row, which its caches and its
    allocator bear far better.
    """
    f = functools.partial(jax.value_and_grad(loss), weights)
    if target().platform != 'cpu' or len(batch.items) == 1:
        return f(batch)

    def row(index):
        return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, index, 1), batch)

    def add(total, index):
        return jax.tree.map(jnp.add, total, f(row(index))), None

    zeros = jax.tree.map(lambda a: lax.pcast(jnp.zeros(a.shape, a.dtype), axes, to='varying'), jax.eval_shape(f, row(0)))
    return lax.scan(add, zeros, jnp.arange(len(batch.items)))[0]


def make_gradients(objective: Objective, mesh: Mesh, params):
    """(params, batch, seed, epoch) -> (loss sum, targets, gradients) over the mesh; not yet jitted.

    params: arrays or shapes, for their tree.
    """
    whole, rows, tree = PartitionSpec(), PartitionSpec(AXES), specs(params)
    body = functools.partial(loss_and_gradients, objective, objective.network.shard(mesh))
    return over_devices(body, mesh, (tree, rows, whole, whole), (whole, whole, tree))


def make_sampled_gradients(objective: Objective, mesh: Mesh, params):
    """(params, probability, batch, seed, epoch, step) -> (loss sum, targets, gradients without the item table's,
    RowGradients of all devices); not yet jitted."""
    whole, rows, tree = PartitionSpec(), PartitionSpec(AXES), specs(params)
    body = functools.partial(sampled_loss_and_gradients, objective, objective.network.shard(mesh))
    return over_devices(
        body, mesh, (tree, PartitionSpec(MODEL_AXIS), rows, whole, whole, whole),
        (whole, whole, specs({name: leaf for name, leaf in params.items() if name != ITEM_EMBEDDING}), rows),
    )
