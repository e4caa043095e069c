"""All prefixes of a history in one pass, compared with the released algorithm run on each prefix by itself.

Masking and dropout are on. Each prefix carries the example id of its history and so gets the same random draws. Both
forms therefore share the draws of each input token and of each readout, and must agree up to rounding.
"""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.model.draws import Draws, mask_items
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.plain import plain_readout
from ssd4rec_jax.model.ssd4rec import SSD4Rec
from tests.packed import pack
from tests.timed import drawn, gaps

SMALL = ModelConfig(
    hidden_size=16, num_layers=1, d_state=8, headdim=8, beta=0.3, dropout_prob=0.2, dtype='float64',
)
# The prefix lengths that are tested for each history length.
ENDS = {n: [*range(1, n + 1)] for n in (1, 2, 3, 4, 5, 40)} | {2100: [1, 5, 2099, 2100]}
ROWS = [[3, 1, 5, 2, 40, 4, 1], [2100]]


def histories():
    rng = np.random.default_rng(0)
    return [[rng.integers(1, 31, n).tolist() for n in row] for row in ROWS]


def one_pass_batch():
    rows = histories()
    numbered = [[(10 * r + s, h) for s, h in enumerate(row)] for r, row in enumerate(rows)]
    return pack(numbered, tokens=2112, segments=8, gaps=gaps)


def prefixes():
    """Rows of (history, end): every prefix in ENDS, all short ones in one row, each long one in a row of its own."""
    every = [(10 * r + s, end) for r, row in enumerate(ROWS) for s, n in enumerate(row) for end in ENDS[n]]
    return [[p for p in every if p[1] < 100], *([p] for p in every if p[1] >= 100)]


def value_and_gradients(graphdef, params, read, batch, cotangent):
    layout = Layout.of(batch)
    draws = Draws.of(np.uint32(1), np.uint32(2), layout)
    items = mask_items(batch.items, 0.2, draws)

    def scalar(params):
        out = read(nnx.merge(graphdef, params), items, layout, draws)
        return jnp.sum(out * cotangent), out

    (_, out), grads = jax.jit(jax.value_and_grad(scalar, has_aux=True))(params)
    return np.asarray(out), nnx.to_pure_dict(grads)


@pytest.mark.slow
@pytest.mark.parametrize('change', [
    dict(), dict(num_layers=2, bidirectional='last', time='decay_and_dt'),
    dict(num_layers=3, beta=0.0, dropout_prob=0.0), dict(d_conv=2, time='dt', backward_order='aligned'),
    dict(d_conv=1, time='decay_and_dt', ngroups=2, norm_embedding=False),
], ids=str)
def test_readout_of_every_prefix_and_every_gradient_equal_the_prefix_by_itself(x64, change):
    config = dataclasses.replace(SMALL, **change)
    graphdef, params = nnx.split(SSD4Rec(config, 30, rngs=nnx.Rngs(0)))
    params = drawn(params)
    rng = np.random.default_rng(3)

    rows = prefixes()
    batch = pack(
        [[(h, histories()[h // 10][h % 10][:end]) for h, end in row] for row in rows], tokens=2112, segments=80,
        gaps=gaps,
    )
    wanted = rng.normal(size=(3, 80, 16)) * (batch.lengths > 0)[..., None]
    plain, plain_grads = value_and_gradients(graphdef, params, plain_readout, batch, wanted)

    whole = one_pass_batch()
    cotangent = np.zeros((2, 2112, 16))
    place = {}
    for r, row in enumerate(rows):
        for s, (history, end) in enumerate(row):
            at = history // 10, int(whole.starts[history // 10, history % 10]) + end - 1
            place[r, s] = at
            cotangent[at] = wanted[r, s]
    ours, our_grads = value_and_gradients(graphdef, params, SSD4Rec.prefix_readouts, whole, cotangent)
    assert len(place) == sum(len(ENDS[n]) for row in ROWS for n in row)
    for (r, s), at in place.items():
        np.testing.assert_allclose(ours[at], plain[r, s], rtol=0, atol=1e-9 * np.abs(plain).max(), err_msg=str((r, s)))
    named = jax.tree_util.tree_leaves_with_path(our_grads)
    for (path, a), b in zip(named, jax.tree.leaves(plain_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * np.abs(b).max(), err_msg=str(path))


def test_where_prefixes_share_no_pass_none_is_read():
    net = SSD4Rec(dataclasses.replace(SMALL, num_layers=2, dtype='float32'), 30, rngs=nnx.Rngs(0))
    whole = one_pass_batch()
    with pytest.raises(ValueError, match="only with one layer, bidirectional = 'last' or beta = 0"):
        net.prefix_readouts(whole.items, Layout.of(whole))
