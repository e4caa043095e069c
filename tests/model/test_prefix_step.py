"""Histories that grow item by item: after each of them the readout is the one of all prefixes in a pass.

That pass is compared with the released algorithm in test_prefixes.py.
"""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.ssd4rec import SSD4Rec
from tests.packed import pack
from tests.timed import drawn, gaps

SMALL = ModelConfig(hidden_size=8, num_layers=1, d_state=4, headdim=4, beta=0.3)
LENGTHS = 30, 17, 3, 1
QUICK = [
    dict(beta=0.0, num_layers=2, time='dt'), dict(num_layers=2, bidirectional='last', time='decay_and_dt', ngroups=2),
    dict(d_conv=1, norm_embedding=False, time='dt'), dict(backward_order='aligned', scores='cosine'),
]
KINDS = [
    *(('float64', 1e-9, change) for change in QUICK[:2]),
    *(pytest.param('float64', 1e-9, change, marks=pytest.mark.slow) for change in [
        *QUICK[2:], dict(), dict(time='dt', d_conv=2),
    ]),
    *(pytest.param('float32', 1e-5, change, marks=pytest.mark.slow) for change in [*QUICK, dict()]),
]


def grown(net, histories, times):
    """The readouts [users, longest, D] after each item; a history that has ended repeats its last one."""
    number, state, found = jnp.zeros(len(histories), jnp.int32), net.no_history(len(histories)), []
    step = jax.jit(lambda *args: net.prefix_step(*args))
    for at in range(max(LENGTHS)):
        items = jnp.asarray([h[min(at, len(h) - 1)] for h in histories], jnp.int32)
        gap = jnp.asarray([t[min(at, len(t) - 1)] for t in times], jnp.float32)
        readout, state = step(items, gap, number, state)
        number += 1
        found.append(np.asarray(readout))
    return np.stack(found, axis=1)


@pytest.mark.parametrize('dtype, close, change', KINDS, ids=str)
def test_after_each_item_the_readout_is_that_of_the_prefix(x64, dtype, close, change):
    graphdef, params = nnx.split(SSD4Rec(dataclasses.replace(SMALL, dtype=dtype, **change), 20, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: a + (0.3 * rng.standard_normal(a.shape)).astype(a.dtype), drawn(params))
    params = jax.tree.map(lambda a: a.astype(dtype), params)
    net = nnx.merge(graphdef, params)
    histories = [rng.integers(1, 21, n).tolist() for n in LENGTHS]
    batch = pack([list(enumerate(histories))], tokens=64, segments=len(LENGTHS), gaps=gaps)
    expected = np.asarray(jax.jit(lambda *args: net.prefix_readouts(*args))(batch.items, Layout.of(batch)))[0]
    found = grown(net, histories, [gaps(n, len(h)) for n, h in enumerate(histories)])
    start = 0
    for user, length in enumerate(LENGTHS):
        np.testing.assert_allclose(
            found[user, :length], expected[start:start + length], rtol=close, atol=close * np.abs(expected).max()
        )
        start += length


def test_layers_that_see_the_end_of_a_history_refuse():
    net = SSD4Rec(dataclasses.replace(SMALL, num_layers=2), 20, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match='share a pass'):
        net.prefix_step(jnp.ones(1, jnp.int32), jnp.zeros(1), jnp.zeros(1, jnp.int32), net.no_history(1))
