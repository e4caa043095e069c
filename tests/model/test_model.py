"""The network: packing changes nothing, histories never mix; both backward orders, dtypes and refused shapes."""
import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssd4rec_jax.config.model import BACKWARD_ORDERS, ModelConfig
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.model.draws import Draws
from ssd4rec_jax.model.inputs import TokenInputs
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.mamba2 import BidirectionalMamba2
from ssd4rec_jax.model.ssd4rec import SSD4Rec
from tests.packed import pack
from tests.timed import drawn, gaps

SMALL = ModelConfig(hidden_size=16, num_layers=2, d_state=8, headdim=8, beta=0.3, dropout_prob=0.2, dtype='float64')
NUM_ITEMS = 30
SEGMENTS = 9


def model(config):
    return SSD4Rec(config, NUM_ITEMS, rngs=nnx.Rngs(0))


def history(example, length):
    return np.random.default_rng(example).integers(1, NUM_ITEMS + 1, length).tolist()


@functools.partial(nnx.jit, static_argnums=2)
def run(net, batch, train):
    layout = Layout.of(batch)
    return net.readout(batch.items, layout, Draws.of(np.uint32(1), np.uint32(2), layout) if train else None)


def readout_by_example(net, rows, tokens, train=False):
    """{example: hidden state [D] at its last item} for packed rows."""
    readout = np.asarray(run(net, pack(rows, tokens=tokens, segments=SEGMENTS, gaps=gaps), train))
    chex.assert_shape(readout, (len(rows), SEGMENTS, net.config.hidden_size))
    return {e: readout[r, s] for r, row in enumerate(rows) for s, (e, _) in enumerate(row)}


@pytest.mark.parametrize('order,bidirectional,time,train', [
    ('reversed', 'all', 'decay_and_dt', True), ('aligned', 'last', 'none', False),
])
def test_packing_changes_nothing(x64, order, bidirectional, time, train):
    """Alone, or packed anywhere with any neighbours, a history gives the same hidden state, dropout included."""
    graphdef, params = nnx.split(model(
        dataclasses.replace(SMALL, backward_order=order, bidirectional=bidirectional, time=time)
    ))
    net = nnx.merge(graphdef, drawn(params))
    lengths = [1, 2, 3, 4, 5, 40, 7, 1, 130]
    histories = [(e, history(e, n)) for e, n in enumerate(lengths)]
    alone = {}
    for e, items in histories:
        alone |= readout_by_example(net, [[(e, items)], [], []], 200, train)
    exactly = readout_by_example(net, [[histories[5]]], 40, train)[5]
    np.testing.assert_allclose(exactly, alone[5], rtol=1e-9, atol=1e-12)
    for seed in range(3):
        order_of = np.random.default_rng(seed).permutation(len(histories))
        rows = [[histories[k] for k in order_of[:4]], [histories[k] for k in order_of[4:]], []]
        packed = readout_by_example(net, rows, 200, train)
        for e, _ in histories:
            np.testing.assert_allclose(packed[e], alone[e], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('order', BACKWARD_ORDERS)
def test_nan_in_one_history_or_in_padding_reaches_no_other(order):
    """Item 30's embedding is NaN: only the histories that hold it may notice, in values and in gradients."""
    net = model(dataclasses.replace(SMALL, backward_order=order, dtype='float32'))
    rows = [[(0, [1, 2, 3]), (1, [30, 4]), (2, [5])], [(3, [6, 7])]]
    batch = pack(rows, tokens=9, segments=3)
    batch.items[:, -2:] = 30  # padding
    batch.items[1, 2:] = 30
    layout = Layout.of(batch)
    graphdef, state = nnx.split(net)
    params = nnx.to_pure_dict(state)
    params['item_embedding'] = params['item_embedding'].at[30].set(jnp.nan)

    def clean_sum(embedding):
        readout = nnx.merge(graphdef, nnx.State(params | {'item_embedding': embedding})).readout(batch.items, layout)
        clean = jnp.asarray([[True, False, True], [True, False, False]])[..., None]
        return jnp.sum(jnp.where(clean, readout, 0.0) ** 2), readout

    (_, readout), grads = jax.jit(jax.value_and_grad(clean_sum, has_aux=True))(params['item_embedding'])
    assert np.isfinite(readout[0, [0, 2]]).all() and np.isfinite(readout[1, 0]).all()
    assert np.isnan(readout[0, 1]).all()
    assert np.isfinite(grads[jnp.asarray([1, 2, 3, 5, 6, 7])]).all()


@pytest.mark.slow
def test_directions_against_the_one_directional_mixer(x64):
    """With beta = 0 only the forward value f is left; b is f of the reversed history, flipped back if 'aligned'."""
    def mixer(beta, order):
        config = dataclasses.replace(SMALL, beta=beta, backward_order=order)
        return BidirectionalMamba2(config, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(5))

    length = 11
    layout = Layout.of(pack([[(0, [1] * length)]], tokens=length, segments=1))
    u = jnp.asarray(np.random.default_rng(0).normal(size=(1, length, SMALL.hidden_size)))
    f = mixer(0.0, 'reversed')(TokenInputs(u), layout)
    b = mixer(0.0, 'reversed')(TokenInputs(u[:, ::-1]), layout)
    for order, expected in (('reversed', f + 0.3 * b), ('aligned', f + 0.3 * b[:, ::-1])):
        np.testing.assert_allclose(mixer(0.3, order)(TokenInputs(u), layout), expected, rtol=1e-9, atol=1e-12)
    assert np.abs(np.asarray(b - b[:, ::-1])).max() > 1e-6


def test_init_follows_the_released_code():
    net = model(dataclasses.replace(SMALL, hidden_size=128, headdim=4, dtype='float32'))
    mixer = net.layers[0].mixer
    dt = np.log1p(np.exp(np.asarray(mixer.dt_bias[...])))
    assert dt.min() >= 1e-3 * 0.999 and dt.max() <= 1e-1 * 1.001 and dt.max() / dt.min() > 10
    A = np.exp(np.asarray(mixer.A_log[...]))
    assert A.min() >= 1 and A.max() <= 16 and A.std() > 2
    np.testing.assert_array_equal(mixer.D_skip[...], 1)
    for w in (mixer.in_proj.kernel, mixer.out_proj.kernel, net.layers[0].ffn.w_1.kernel, net.item_embedding):
        assert abs(float(w[...].std()) - 0.02) < 0.002 and abs(float(w[...].mean())) < 0.002
    for w in (mixer.conv_kernel, mixer.conv_bias):
        assert -0.5 <= float(w[...].min()) < -0.4 and 0.4 < float(w[...].max()) <= 0.5
    np.testing.assert_array_equal(net.layers[0].ffn.w_1.bias[...], 0)


@pytest.mark.slow
def test_without_norm_embedding_its_parameters_get_exactly_no_gradient():
    graphdef, state = nnx.split(model(dataclasses.replace(SMALL, norm_embedding=False, dtype='float32')))
    batch = pack([[(0, [1, 2, 3])]], tokens=4, segments=1)
    layout = Layout.of(batch)
    draws = Draws.of(np.uint32(0), np.uint32(0), layout)
    grads = jax.jit(jax.grad(lambda s: nnx.merge(graphdef, s).readout(batch.items, layout, draws).sum()))(state)
    np.testing.assert_array_equal(grads.norm.scale[...], 0)
    assert np.abs(np.asarray(grads.item_embedding[...])[[1, 2, 3]]).min() > 0


@pytest.mark.parametrize('ngroups,d_conv,expand,layers', [(2, 4, 2, 1), (4, 2, 4, 3), (1, 1, 1, 2)])
@pytest.mark.slow
def test_other_shapes_run_and_every_parameter_gets_a_gradient(ngroups, d_conv, expand, layers):
    config = dataclasses.replace(
        SMALL, ngroups=ngroups, d_conv=d_conv, expand=expand, num_layers=layers, headdim=4, dtype='float32'
    )
    graphdef, state = nnx.split(model(config))
    batch = pack([[(e, history(e, 6)) for e in range(5)]], tokens=32, segments=5)
    layout = Layout.of(batch)

    def loss(state):
        net = nnx.merge(graphdef, state)
        return jnp.sum(net.readout(batch.items, layout) @ net.item_embedding[...].T ** 3)

    for path, g in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(state)):
        assert np.isfinite(g).all() and np.abs(g).max() > 0, path


def test_bfloat16_stays_near_float32_and_keeps_float32_parameters():
    batch = pack([[(e, history(e, 20)) for e in range(5)]], tokens=100, segments=SEGMENTS)
    out = {}
    for dtype in ('float32', 'bfloat16'):
        net = model(dataclasses.replace(SMALL, dtype=dtype))
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(net, nnx.Param))} == {jnp.dtype('float32')}
        out[dtype] = run(net, batch, False)
        assert out[dtype].dtype == dtype
    np.testing.assert_allclose(np.asarray(out['bfloat16'], np.float32), out['float32'], atol=0.1)


@pytest.mark.parametrize('change,named', [
    (dict(headdim=7), 'model.headdim=7'),
    (dict(headdim=16, ngroups=3), 'model.ngroups=3'),
    (dict(num_layers=0), 'model.num_layers=0'),
    (dict(dropout_prob=1.0), 'model.dropout_prob=1.0'),
    (dict(backward_order='flipped'), "model.backward_order='flipped'"),
    (dict(bidirectional='first'), "model.bidirectional='first' must be one of all, last"),
    (dict(time='minutes'), "model.time='minutes' must be one of none, dt, decay_and_dt"),
    (dict(dtype='float8'), "model.dtype='float8'"),
])
def test_a_shape_that_cannot_work_is_refused_by_name(change, named):
    with pytest.raises(ConfigError, match=named):
        ModelConfig(**change)


def test_items_that_do_not_fit_their_layout_are_refused_by_name():
    batch = pack([[(0, [1, 2, 3])]], tokens=4, segments=1)
    net = model(dataclasses.replace(SMALL, num_layers=1, dtype='float32'))
    for read in (net.readout, net.prefix_readouts):
        with pytest.raises(AssertionError, match='rank'):
            read(batch.items[0], Layout.of(batch))
        with pytest.raises(AssertionError, match='shape'):
            read(batch.items[:, :3], Layout.of(batch))


def test_float64_without_x64_is_refused():
    with pytest.raises(ConfigError, match='JAX_ENABLE_X64'):
        model(SMALL)


@pytest.mark.slow
def test_a_layer_without_its_feed_forward_network_ends_with_the_norm(x64):
    """h = LayerNorm(f + beta * b + u) of the one layer, by the layer's own parts."""
    config = dataclasses.replace(SMALL, num_layers=1, feed_forward=False)
    net, whole = model(config), model(dataclasses.replace(config, feed_forward=True))
    assert net.layers[0].ffn is None and 'ffn' in nnx.to_pure_dict(nnx.state(whole))['layers'][0]
    batch = pack([[(0, history(0, 7))]], tokens=16, segments=SEGMENTS, gaps=gaps)
    layout, u = Layout.of(batch), jnp.take(net.item_embedding[...], batch.items, axis=0)
    u = net.norm(u) if config.norm_embedding else u
    layer = net.layers[0]
    expected = layer.norm(layer.mixer(TokenInputs(u), layout) + u)[0, 6]
    np.testing.assert_allclose(net.readout(batch.items, layout)[0, 0], expected, rtol=1e-12)
