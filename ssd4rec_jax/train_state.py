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
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pallas_kernels.target import target
from ssd4rec_jax.data.packing import PackedBatch
from ssd4rec_jax.losses import softmax_loss_sum
from ssd4rec_jax.model.draws import Draws
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.ssd4rec import SSD4Rec, mask_items

DATA_AXIS = 'data'


class TrainState(NamedTuple):
    """One checkpoint's worth of arrays, replicated over the mesh.

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

    def bind(self, params: dict) -> SSD4Rec:
        return nnx.merge(self.graphdef, nnx.State(params))


def init_network(config, num_items: int, seed: int) -> tuple[Network, dict]:
    """A new model as (its structure, its parameters as a nested dict)."""
    graphdef, state = nnx.split(SSD4Rec(config, num_items, rngs=nnx.Rngs(seed)))
    return Network(graphdef), nnx.to_pure_dict(state)


def data_mesh(devices=None) -> jax.sharding.Mesh:
    """One axis `data` over all local devices (or those given)."""
    devices = jax.local_devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh) -> NamedSharding:
    """Sharding of a PackedBatch: its rows are split over the mesh."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def loss_and_gradients(
    network: Network, mask_ratio: float, every_prefix: bool, params: dict, batch: PackedBatch, seed, epoch
):
    """Per-device body: summed loss, target count and summed gradients over the whole `data` axis.

    every_prefix: the batch has a target a token, and every prefix is read (see ssd4rec_jax.objective).

    Gradients are taken of this device's loss sum with respect to device-varying parameters and summed
    explicitly. Differentiating through a psum instead gives gradients multiplied by the mesh size wherever
    replication is not tracked (shard_map with check_vma=False, pmap).

    On a CPU the rows follow one another: a step's temporaries are then those of one row, which its caches and its
    allocator bear far better.
    """

    def local_loss(params, batch):
        model = network.bind(params)
        layout = Layout.of(batch)
        draws = Draws.of(seed, epoch, layout)
        read = model.prefix_readouts if every_prefix else model.readout
        readout = read(mask_items(batch.items, mask_ratio, draws), layout, draws)
        return softmax_loss_sum(readout, model.item_embedding[...], batch.targets, batch.targets > 0)

    varying = jax.tree.map(lambda w: lax.pcast(w, DATA_AXIS, to='varying'), params)
    value_and_grad = jax.value_and_grad(local_loss)
    if target().platform == 'cpu' and len(batch.items) > 1:
        loss, grads = _sum_over_rows(functools.partial(value_and_grad, varying), batch)
    else:
        loss, grads = value_and_grad(varying, batch)
    count = jnp.sum(batch.targets > 0)
    return lax.psum((loss, count, grads), DATA_AXIS)


def _sum_over_rows(f, batch: PackedBatch):
    """Sum of f(batch of one row) over a batch's rows, one after another; f's values vary over the `data` axis."""

    def row(index):
        return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, index, 1), batch)

    def add(total, index):
        return jax.tree.map(jnp.add, total, f(row(index))), None

    zeros = jax.tree.map(
        lambda a: lax.pcast(jnp.zeros(a.shape, a.dtype), DATA_AXIS, to='varying'), jax.eval_shape(f, row(0))
    )
    return lax.scan(add, zeros, jnp.arange(len(batch.items)))[0]


def train_step(
    network: Network, optimizer: optax.GradientTransformation, mask_ratio: float, every_prefix: bool,
    state: TrainState, batch: PackedBatch, seed, epoch,
) -> tuple[TrainState, jax.Array]:
    """Per-device body of one optimiser step: (new state, mean loss of the step's targets, float32)."""
    loss, count, grads = loss_and_gradients(network, mask_ratio, every_prefix, state.params, batch, seed, epoch)
    grads = jax.tree.map(lambda g: g / count, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    new = TrainState(
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        step=state.step + 1,
        epoch_loss=state.epoch_loss + loss,
        epoch_targets=state.epoch_targets + count,
    )
    return new, loss / count


def over_rows(body, mesh, *, replicated_args: tuple[bool, ...], out_specs):
    """shard_map of a per-device body over the mesh's `data` axis; batches are split by rows."""
    spec = {True: PartitionSpec(), False: PartitionSpec(DATA_AXIS)}
    return jax.shard_map(
        body, mesh=mesh, in_specs=tuple(spec[r] for r in replicated_args), out_specs=out_specs
    )


def make_train_step(network, optimizer, mask_ratio: float, mesh, *, every_prefix: bool = False):
    """jit of (state, batch, seed, epoch) -> (state, loss); the state's buffers are reused."""
    body = functools.partial(train_step, network, optimizer, mask_ratio, every_prefix)
    mapped = over_rows(
        body, mesh, replicated_args=(True, False, True, True), out_specs=PartitionSpec()
    )
    return jax.jit(mapped, donate_argnums=0)


def init_state(params: dict, optimizer: optax.GradientTransformation, mesh) -> TrainState:
    """Step 0's state, replicated over the mesh."""
    state = TrainState(
        params, optimizer.init(params), jnp.int32(0), jnp.float32(0), jnp.int32(0)
    )
    return jax.device_put(state, replicated(mesh))


def parameters_sha256(params: dict) -> str:
    """Digest over names, dtypes, shapes and bytes of all parameters, names ascending."""
    digest = hashlib.sha256()
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for name in sorted(leaves):
        array = np.asarray(leaves[name])
        digest.update(f'{name} {array.dtype} {array.shape}\n'.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
