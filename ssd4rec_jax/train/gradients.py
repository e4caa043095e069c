"""The loss of a step and its gradients before the optimiser, on any mesh."""
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels.target import target
from ssd4rec_jax.data.packing import PackedBatch
from ssd4rec_jax.model.draws import Draws, mask_items
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.networks import mean_loss
from ssd4rec_jax.model.seen import seen_by_histories, seen_by_prefixes
from ssd4rec_jax.parallel.mesh import AXES, DATA_AXIS, ITEM_EMBEDDING, MODEL_AXIS, over_devices, specs
from ssd4rec_jax.parallel.table_shard import TableShard, item_numbers
from ssd4rec_jax.train.cloze import hidden_items
from ssd4rec_jax.train.objective import Objective
from ssd4rec_jax.train.sampled_softmax import draw_negatives


class RowGradients(NamedTuple):
    """Gradients of some rows of the item table.

    ids: int32 [n], row numbers; ids beyond the table mark empty entries. gradients: float32 [n, D].
    The ids of one device ascend strictly. Where the gradients of several devices lie one after another, an id may occur
    once for each device.
    """

    ids: jax.Array
    gradients: jax.Array


def loss_and_gradients(
    objective: Objective, shard: TableShard, params: dict, batch: PackedBatch, seed: jax.Array, epoch: jax.Array,
    axes: tuple[str, ...] = AXES,
) -> tuple[jax.Array, jax.Array, dict]:
    """The computation of one device for a loss over the whole catalogue.

    params: the parameters as this device holds them, with its part of the item table, which shard describes. batch:
    this device's rows. seed, epoch: uint32 scalars. axes: the mesh axes over which batches are split.
    Returns (loss, number of targets, gradients like params), each summed over all devices.
    """
    varying = _own(params, axes)
    batch = _asked(objective, batch, seed, epoch)
    if shard.shards == 1:
        loss, grads = _over_rows(_loss_of(objective, shard, seed, epoch), _Weights(varying, None), batch, axes)
        grads = grads.params
    else:
        # The rows for the items of the batch are fetched once; item ids then become positions among these rows.
        part = varying[ITEM_EMBEDDING]
        ids, items = item_numbers(shard, batch.items)
        fetched, fetch_back = jax.vjp(lambda part: shard.fetch(part, ids), part)
        weights = _Weights({**varying, ITEM_EMBEDDING: fetched}, part)
        f = _loss_of(objective, shard, seed, epoch, ids)
        loss, grads = _over_rows(f, weights, batch._replace(items=items), axes)
        (of_fetched,) = fetch_back(grads.params[ITEM_EMBEDDING])
        grads = {**grads.params, ITEM_EMBEDDING: grads.scored + of_fetched}
    loss, count = lax.psum((loss, jnp.sum(batch.targets > 0)), axes)
    return loss, count, _summed(grads, axes)


def sampled_loss_and_gradients(
    objective: Objective, shard: TableShard, params: dict, probability: jax.Array, batch: PackedBatch, seed: jax.Array,
    epoch: jax.Array, step: jax.Array,
) -> tuple[jax.Array, jax.Array, dict, RowGradients]:
    """The computation of one device for a loss over a sample of the catalogue; arguments as in loss_and_gradients.

    probability: float32 [held], the probability of each of this device's items to be a target. step: int32 scalar, the
    number of the step, which decides the negatives. All rows of the item table that the step needs are fetched once,
    and the network and the loss see only these rows.
    Returns (loss, number of targets, gradients without the item table, this device's RowGradients); the first three are
    summed over all devices.
    """
    varying = _own(params, AXES)
    batch = _asked(objective, batch, seed, epoch)
    negatives = draw_negatives(seed, step, objective.negatives, shard.rows)
    ids, items, targets, negatives = item_numbers(shard, batch.items, batch.targets, negatives)
    rows = shard.fetch(varying[ITEM_EMBEDDING], ids).astype(jnp.float32)
    chance = shard.fetch(lax.pcast(probability, DATA_AXIS, to='varying'), ids)

    def loss_of(weights, batch):
        model, readout, seen = _readout(objective, weights.params, batch, seed, epoch)

        def loss(readout, vectors):
            # Position 0 belongs to item 0, which is never a target, so it marks the absence of a target here too.
            return jnp.sum(objective.loss.of(
                readout, vectors, batch.targets, batch.targets > 0, negatives, objective.negatives / shard.rows, chance,
                **seen,
            ))

        return mean_loss(model, readout, model.item_embedding[...], loss)

    weights = _Weights({**varying, ITEM_EMBEDDING: rows}, None)
    loss, grads = _over_rows(loss_of, weights, batch._replace(items=items, targets=targets), AXES)
    network = {name: grad for name, grad in grads.params.items() if name != ITEM_EMBEDDING}
    loss, count = lax.psum((loss, jnp.sum(batch.targets > 0)), AXES)
    return loss, count, _summed(network, AXES), RowGradients(ids, grads.params[ITEM_EMBEDDING])


class _Weights(NamedTuple):
    """What the loss of a step is differentiated with respect to.

    params: the parameters. scored: None where the item table in params is also the one that items are scored with.
    Otherwise it is this device's part of the item table, for scoring, and params holds the rows fetched for the batch.
    """

    params: dict
    scored: jax.Array | None


def _asked(objective: Objective, batch: PackedBatch, seed, epoch) -> PackedBatch:
    """The batch with the targets that this step asks for: all of them, and in a cloze those of hidden items."""
    if objective.last_alone is None:
        return batch
    layout = Layout.of(batch)
    hidden = hidden_items(layout, Draws.of(seed, epoch, layout), objective.mask_ratio, objective.last_alone)
    return batch._replace(targets=jnp.where(hidden, batch.targets, 0))


def _readout(objective: Objective, params: dict, batch: PackedBatch, seed, epoch):
    """(the bound network, its readouts of the batch with items masked, what a loss gets of a seen-item term)."""
    model = objective.network.bind(params)
    layout = Layout.of(batch)
    draws = Draws.of(seed, epoch, layout)
    if objective.last_alone is not None:
        return model, model.cloze_readouts(jnp.where(batch.targets > 0, 0, batch.items), layout, draws), {}
    read = model.prefix_readouts if objective.every_prefix else model.readout
    seen = {}
    if hasattr(model, 'seen'):
        which = seen_by_prefixes if objective.every_prefix else seen_by_histories
        seen['seen'] = model.seen.bias, which(batch.items, layout)
    masked = mask_items(batch.items, objective.mask_ratio, draws)
    return model, read(masked, layout, draws), seen


def _loss_of(objective: Objective, shard: TableShard, seed, epoch, ids=None):
    """The loss over the whole catalogue of weights and a batch, whose items are positions in `ids` if that is given."""
    def loss(weights: _Weights, batch: PackedBatch):
        model, readout, seen = _readout(objective, weights.params, batch, seed, epoch)
        if seen and ids is not None:
            bias, of_items = seen['seen']
            seen['seen'] = bias, of_items._replace(item=ids[of_items.item])
        table = model.item_embedding[...] if weights.scored is None else weights.scored

        def of(readout, vectors):
            return objective.loss.of(readout, vectors, batch.targets, batch.targets > 0, shard=shard, **seen)

        return mean_loss(model, readout, table, of)

    return loss


def _own(params: dict, axes) -> dict:
    """The parameters marked as varying over the mesh, as if each device had its own.

    The gradients of each device's own loss with respect to these are then summed explicitly. Differentiating through a
    psum instead would multiply the gradients by the size of the mesh wherever replication is not tracked (shard_map
    with check_vma=False, pmap).
    """
    return _by_parameter(lambda w, repeated: lax.pcast(w, repeated, to='varying') if repeated else w, params, axes)


def _summed(grads: dict, axes) -> dict:
    """The gradients summed over the axes over which their parameters are replicated."""
    return _by_parameter(lambda g, repeated: lax.psum(g, repeated), grads, axes)


def _by_parameter(f, params: dict, axes):
    """f(w, replicating axes) for each parameter or gradient w.

    The replicating axes are all of `axes`, except that the item table is split over `model`.
    """
    return jax.tree.map(lambda w, spec: f(w, tuple(a for a in axes if a not in spec)), params, specs(params))


def _over_rows(loss, weights: _Weights, batch: PackedBatch, axes):
    """The value of loss(weights, batch) and its gradient with respect to weights.

    On a CPU the rows are computed one after another. The temporaries of a step are then those of a single row, which
    suits the caches and the allocator far better.
    """
    f = functools.partial(jax.value_and_grad(loss), weights)
    if target().platform != 'cpu' or len(batch.items) == 1:
        return f(batch)

    def row(index):
        return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, index, 1), batch)

    def add(total, index):
        return jax.tree.map(jnp.add, total, f(row(index))), None

    shapes = jax.eval_shape(f, row(0))
    zeros = jax.tree.map(lambda a: lax.pcast(jnp.zeros(a.shape, a.dtype), axes, to='varying'), shapes)
    return lax.scan(add, zeros, jnp.arange(len(batch.items)))[0]


def make_gradients(objective: Objective, mesh: Mesh, params: dict) -> Callable:
    """The function (params, batch, seed, epoch) -> (loss, number of targets, gradients), summed over the mesh.

    It is not jitted. params: arrays or their shapes, of which only the tree structure is used.
    """
    whole, rows, tree = PartitionSpec(), PartitionSpec(AXES), specs(params)
    body = functools.partial(loss_and_gradients, objective, objective.network.shard(mesh))
    return over_devices(body, mesh, (tree, rows, whole, whole), (whole, whole, tree))


def make_sampled_gradients(objective: Objective, mesh: Mesh, params: dict) -> Callable:
    """The function (params, probability, batch, seed, epoch, step) -> (loss, number of targets, gradients, rows).

    The gradients leave out the item table; rows are the RowGradients of all devices, one after another. The function is
    not jitted. params: as in make_gradients.
    """
    whole, rows, tree = PartitionSpec(), PartitionSpec(AXES), specs(params)
    body = functools.partial(sampled_loss_and_gradients, objective, objective.network.shard(mesh))
    return over_devices(
        body, mesh, (tree, PartitionSpec(MODEL_AXIS), rows, whole, whole, whole),
        (whole, whole, specs({name: leaf for name, leaf in params.items() if name != ITEM_EMBEDDING}), rows),
    )
