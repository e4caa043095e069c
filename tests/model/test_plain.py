"""The model against the released algorithm written straight down (ssd4rec_jax.model.plain), values and gradients."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssd4rec_jax.model.config import ModelConfig
from ssd4rec_jax.model.draws import Draws
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.plain import plain_readout
from ssd4rec_jax.model.ssd4rec import SSD4Rec, mask_items
from tests.packed import pack

SMALL = ModelConfig(hidden_size=16, d_state=8, headdim=8, beta=0.3, dropout_prob=0.2, dtype='float64')
LENGTHS = [[1, 2, 3, 4, 5, 1, 33], [1500, 6]]


def batch():
    rng = np.random.default_rng(0)
    rows = [[(10 * r + s, rng.integers(1, 31, n).tolist()) for s, n in enumerate(row)] for r, row in enumerate(LENGTHS)]
    return pack(rows, tokens=1536, segments=8)


def value_and_gradients(readout_of, graphdef, params, batch, train):
    layout = Layout.of(batch)
    draws = Draws.of(np.uint32(1), np.uint32(2), layout) if train else None
    items = mask_items(batch.items, 0.2, draws) if train else batch.items
    real = jnp.asarray(batch.lengths > 0)[..., None]
    cotangent = jnp.asarray(np.random.default_rng(3).normal(size=(*batch.lengths.shape, SMALL.hidden_size)))

    def scalar(params):
        readout = jnp.where(real, readout_of(nnx.merge(graphdef, params), items, layout, draws), 0.0)
        return jnp.sum(readout * cotangent), readout

    (_, readout), grads = jax.jit(jax.value_and_grad(scalar, has_aux=True))(params)
    return readout, nnx.to_pure_dict(grads)


@pytest.mark.parametrize('layers,ngroups,norm_embedding,order,train', [
    (1, 2, False, 'reversed', True),
    (1, 1, False, 'aligned', True),
    (2, 1, True, 'reversed', True),
    pytest.param(2, 2, True, 'aligned', False, marks=pytest.mark.slow),
    pytest.param(3, 1, True, 'reversed', True, marks=pytest.mark.slow),
    pytest.param(3, 1, True, 'aligned', True, marks=pytest.mark.slow),
])
def test_readout_and_every_gradient_equal_the_plain_form(x64, layers, ngroups, norm_embedding, order, train):
    config = dataclasses.replace(
        SMALL, num_layers=layers, ngroups=ngroups, norm_embedding=norm_embedding, backward_order=order
    )
    graphdef, params = nnx.split(SSD4Rec(config, 30, rngs=nnx.Rngs(0)))
    ours, our_grads = value_and_gradients(SSD4Rec.readout, graphdef, params, batch(), train)
    plain, plain_grads = value_and_gradients(plain_readout, graphdef, params, batch(), train)
    np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-9 * np.abs(plain).max())
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(our_grads), jax.tree.leaves(plain_grads)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * np.abs(b).max(), err_msg=str(path))
