"""Gaps between interactions: what they do to a scan, what they leave alone, and where they are not known.

tests/model/test_plain.py, test_prefixes.py and test_implementations.py compare the whole network with them.
"""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssd4rec_jax.config.model import TIME_GAP, ModelConfig
from ssd4rec_jax.model.inputs import TokenInputs
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.mamba2 import BidirectionalMamba2
from ssd4rec_jax.model.ssd4rec import SSD4Rec
from tests.packed import pack
from tests.timed import drawn, gaps

CONFIG = ModelConfig(
    hidden_size=8, num_layers=2, d_state=4, headdim=4, beta=0.3, dropout_prob=0.0, time='decay_and_dt', dtype='float64',
)
LENGTH = 9


def model(**change):
    return SSD4Rec(dataclasses.replace(CONFIG, **change), 30, rngs=nnx.Rngs(0))


def with_drawn_scales(net):
    graphdef, params = nnx.split(net)
    return nnx.merge(graphdef, drawn(params))


def batch(length=LENGTH, gaps=gaps):
    return pack([[(0, np.random.default_rng(1).integers(1, 31, length).tolist())]], 12, 2, gaps=gaps)


def readout(net, batch):
    return np.asarray(jax.jit(lambda: net.readout(batch.items, Layout.of(batch)))())[0, 0]


def by_hand(mixer, u, before):
    """The forward direction alone, by the recurrence: decays exp(dt s A), inputs dt t B x, s and t the two factors."""
    c, softplus = mixer.config, lambda a: np.log1p(np.exp(a))
    z, xBC, dt = np.split(u @ np.asarray(mixer.in_proj.kernel[...]), [c.d_inner, c.d_inner + c.conv_width], axis=-1)
    taps, bias = np.asarray(mixer.conv_kernel[...]), np.asarray(mixer.conv_bias[...])
    padded = np.concatenate([np.zeros((c.d_conv - 1, xBC.shape[1])), xBC])
    conv = sum(padded[k:k + len(u)] * taps[k] for k in range(c.d_conv)) + bias
    x, B, C = np.split(conv / (1 + np.exp(-conv)), [c.d_inner, c.d_inner + c.d_state], axis=-1)
    x, dt, A = x.reshape(len(u), -1, c.headdim), softplus(dt + mixer.dt_bias[...]), -np.exp(mixer.A_log[...])
    D = np.asarray(mixer.D_skip[...])[:, None]
    h, out = np.zeros((c.num_heads, c.headdim, c.d_state)), []
    for t in range(len(u)):
        forgets, takes = (2 ** np.tanh(np.asarray(w[...]) * before[t]) for w in (
            mixer.gap_scales.decay, mixer.gap_scales.decay if c.time == 'dt' else mixer.gap_scales.input,
        ))
        h = h * np.exp(dt[t] * forgets * A)[:, None, None] + (dt[t] * takes)[:, None, None] * x[t][..., None] * B[t]
        out.append((h @ C[t] + D * x[t]).reshape(-1))
    gated = np.array(out) * z / (1 + np.exp(-z))
    normed = gated / np.sqrt((gated**2).mean(-1, keepdims=True) + 1e-5) * np.asarray(mixer.norm.scale[...])
    return normed @ np.asarray(mixer.out_proj.kernel[...])


@pytest.mark.parametrize('time', ['dt', 'decay_and_dt'])
def test_a_gap_scales_the_decay_before_its_token_and_the_input_of_its_token(x64, time):
    config = dataclasses.replace(CONFIG, beta=0.0, time=time)
    mixer = with_drawn_scales(
        BidirectionalMamba2(config, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    )
    u = np.random.default_rng(2).normal(size=(1, 12, config.hidden_size))
    layout = Layout.of(batch())
    before = np.append(0, gaps(0, LENGTH)[1:])  # no interaction comes before the first one
    found = nnx.jit(lambda mixer: mixer(TokenInputs(jnp.asarray(u)), layout))(mixer)
    np.testing.assert_allclose(found[0, :LENGTH], by_hand(mixer, u[0, :LENGTH], before), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_the_reversed_history_has_its_gaps_reversed(x64):
    """The backward direction reads the gap after each token, and the last token has none."""
    config = dataclasses.replace(CONFIG, beta=1.0, backward_order='reversed')
    mixer = with_drawn_scales(
        BidirectionalMamba2(config, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    )
    forward = nnx.merge(*nnx.split(mixer))
    forward.config = dataclasses.replace(config, beta=0.0)
    u = jnp.asarray(np.random.default_rng(2).normal(size=(1, LENGTH, config.hidden_size)))
    order = gaps(0, LENGTH)

    def layout(values):
        return Layout.of(pack([[(0, [1] * LENGTH)]], LENGTH, 1, gaps=lambda *_: values))

    backward = mixer(TokenInputs(u), layout(order)) - forward(TokenInputs(u), layout(order))
    reversed_ = forward(TokenInputs(u[:, ::-1]), layout(np.append(np.nan, order[:0:-1])))
    np.testing.assert_allclose(backward, reversed_, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('time, scales', [('dt', 1), ('decay_and_dt', 2)])
def test_a_new_network_is_exactly_the_one_without_times(time, scales):
    plain, timed = (nnx.split(model(dtype='float32', time=kind)) for kind in ('none', time))
    there = dict(jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(plain[1])))
    here = dict(jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(timed[1])))
    assert len(here) == len(there) + 2 * scales  # in each of two layers
    assert sum(leaf.size for path, leaf in here.items() if path not in there) == 2 * scales * CONFIG.num_heads
    for path, leaf in there.items():
        np.testing.assert_array_equal(here[path], leaf)
    np.testing.assert_array_equal(readout(nnx.merge(*timed), batch()), readout(nnx.merge(*plain), batch()))


def test_typical_gaps_and_unknown_ones_are_the_same(x64):
    net = with_drawn_scales(model())
    typical = readout(net, batch(gaps=lambda _, length: np.zeros(length)))
    np.testing.assert_array_equal(readout(net, batch(gaps=None)), typical)
    assert np.abs(readout(net, batch()) - typical).max() > 1e-6


def test_scales_are_bounded():
    net = with_drawn_scales(model(dtype='float32'))
    decay, input_ = net.layers[0].mixer.gap_scales(jnp.asarray([[-1e6, -1.0, 0.0, 1.0, 1e6]]))
    for factor in (decay, input_):
        assert factor.min() == pytest.approx(0.5) and factor.max() == pytest.approx(2)
        np.testing.assert_array_equal(factor[0, 2], 1)


@pytest.mark.slow
def test_every_scale_gets_a_gradient_at_the_start(x64):
    graphdef, params = nnx.split(model(bidirectional='last'))
    layout = Layout.of(batch())
    loss = jax.jit(jax.grad(lambda p: jnp.sum(nnx.merge(graphdef, p).readout(batch().items, layout)[0, 0] ** 3)))
    grads = loss(params)
    for layer in nnx.to_pure_dict(grads)['layers'].values():
        for g in layer['mixer']['gap_scales'].values():
            assert np.abs(g).min() > 0


def test_features_name_what_is_read():
    assert [dataclasses.replace(CONFIG, time=kind).features for kind in ('none', 'dt')] == ['', TIME_GAP]
