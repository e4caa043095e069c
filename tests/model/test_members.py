"""Networks that learn side by side, compared with each of them alone."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.train import TrainConfig
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.model.draws import Draws
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.network import Network, init_network
from ssd4rec_jax.model.networks import item_vectors
from ssd4rec_jax.model.released_weights import to_torch_params
from ssd4rec_jax.model.ssd4rec import SSD4Rec
from ssd4rec_jax.parallel.mesh import device_mesh, place_rows, shardings
from ssd4rec_jax.train.gradients import make_gradients, make_sampled_gradients
from ssd4rec_jax.train.losses import FULL_SOFTMAX, make_loss
from ssd4rec_jax.train.objective import Objective
from tests.packed import pack

ITEMS, MEMBERS, WIDTH, EPOCH = 12, 2, 8, np.uint32(2)
CONFIG = ModelConfig(
    hidden_size=WIDTH, num_layers=1, d_state=4, headdim=4, beta=0.3, dropout_prob=0.3, dtype='float64', members=MEMBERS,
    seen_bias=True,
)


def two_networks(**change):
    """(the network of both, its parameters, [each alone and its parameters])."""
    config = dataclasses.replace(CONFIG, **change)
    both, params = init_network(config, ITEMS, seed=0)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda w: jnp.asarray(w + rng.normal(size=w.shape)), params)
    graphdef = nnx.split(SSD4Rec(dataclasses.replace(config, members=1), ITEMS, rngs=nnx.Rngs(0)))[0]
    own = [
        {
            **params['encoders'][k], 'seen': params['seen'],
            'item_embedding': params['item_embedding'][:, k * WIDTH:(k + 1) * WIDTH],
        } for k in range(MEMBERS)
    ]
    return both, params, [(Network(graphdef, ITEMS), one) for one in own]


def batch():
    rng = np.random.default_rng(0)
    rows = [[(10 * r + n, rng.integers(1, ITEMS + 1, 1 + 3 * n + r).tolist()) for n in range(3)] for r in range(4)]
    return pack(rows, tokens=32, segments=4, targets={e: int(rng.integers(1, ITEMS + 1)) for e in range(40)})


@pytest.mark.slow
@pytest.mark.parametrize('read, change', [
    ('prefix_readouts', dict(scores='cosine', dropout_prob=0.0)), ('readout', dict()),
])
def test_scores_are_the_mean_of_those_of_each_network(x64, read, change):
    both, params, each = two_networks(**change)
    packed = batch()
    layout = Layout.of(packed)
    draws = Draws.of(np.uint32(5), EPOCH, layout)
    model, scores, parts = both.bind(params), [], []
    for k, (network, own) in enumerate(each):
        alone = network.bind(own)
        parts.append((
            getattr(alone, read)(packed.items, layout, draws.of_member(k)),
            item_vectors(alone, own['item_embedding']),
        ))
        scores.append(parts[-1][0] @ parts[-1][1].T)
    readout, vectors = getattr(model, read)(packed.items, layout, draws), item_vectors(model, params['item_embedding'])
    real = np.asarray(packed.lengths > 0 if read == 'readout' else packed.segment_ids > 0)
    np.testing.assert_allclose((readout @ vectors.T)[real], np.mean(scores, 0)[real], rtol=1e-12)
    for member, part in zip(model.members(readout, vectors), parts, strict=True):
        np.testing.assert_allclose(member[0][real], part[0][real], rtol=1e-12)
        np.testing.assert_array_equal(member[1], part[1])
    assert np.abs(scores[0] - scores[1])[real].max() > 0.1


def test_the_first_network_has_the_draws_of_a_single_one():
    layout = Layout.of(batch())
    draws = Draws.of(np.uint32(5), EPOCH, layout)
    np.testing.assert_array_equal(draws.of_member(0).token_keys, draws.token_keys)
    dropped = [draws.of_member(k).below(0.5, 'embedding', 64)[0] for k in range(2)]
    assert 0.4 < float(jnp.mean(dropped[0] != dropped[1])) < 0.6


@pytest.mark.slow
@pytest.mark.parametrize('samples, devices, model', [(False, 1, 1), (True, 4, 2)])
def test_the_loss_is_the_mean_and_each_network_learns_by_its_own(x64, devices, model, samples):
    """The first network, the only one whose draws a single network has too, stands for all."""
    both, params, each = two_networks()
    mesh = device_mesh(jax.devices()[:devices], model)
    loss = make_loss(TrainConfig(loss='sampled'), None, ITEMS, model, has_seen=True) if samples else FULL_SOFTMAX

    def found(network, params):
        """(the mean loss, gradients without the item table, gradient of the item table by dense rows)."""
        objective = Objective(network, 0.2, False, loss, 6 if samples else 0)
        make = make_sampled_gradients if samples else make_gradients
        padded = network.split(params, mesh)
        placed = jax.device_put(padded, shardings(padded, mesh))
        rows = place_rows(batch(), mesh, 4)
        if not samples:
            total, count, grads = jax.jit(make(objective, mesh, placed))(placed, rows, np.uint32(5), EPOCH)
            table = grads.pop('item_embedding')[:ITEMS + 1]
            return total / count, grads, np.asarray(table)
        chance = jnp.pad(jnp.full(ITEMS + 1, 1 / (ITEMS + 1)), (0, len(padded['item_embedding']) - ITEMS - 1))
        total, count, grads, rows = jax.jit(make(objective, mesh, placed))(
            placed, chance, rows, np.uint32(5), EPOCH, np.int32(3)
        )
        table = np.zeros((ITEMS + 1, rows.gradients.shape[1]))
        kept = np.asarray(rows.ids) <= ITEMS
        np.add.at(table, np.asarray(rows.ids)[kept], np.asarray(rows.gradients)[kept])
        return total / count, grads, table

    whole, grads, table = found(both, params)
    alone = found(*each[0])
    assert np.isfinite(whole) and abs(whole - alone[0]) > 1e-3
    np.testing.assert_allclose(table[:, :WIDTH], alone[2] / MEMBERS, rtol=1e-5, atol=1e-7)
    del alone[1]['seen']
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b / MEMBERS, rtol=1e-9, atol=1e-9), grads['encoders'][0], alone[1]
    )


def test_what_cannot_hold_several_networks_says_so():
    with pytest.raises(ConfigError, match='model.members=2'):
        to_torch_params({}, dataclasses.replace(CONFIG, seen_bias=False))
    with pytest.raises(ConfigError, match='model.members=0'):
        dataclasses.replace(CONFIG, members=0)
