"""The model compared with the plain form of the released algorithm (ssd4rec_jax.model.plain): values and gradients."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.compiled.work import work_of
from ssd4rec_jax.config.model import BACKWARD_ORDERS, ModelConfig
from ssd4rec_jax.model import ssd4rec
from ssd4rec_jax.model.draws import Draws, mask_items
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.plain import plain_readout
from ssd4rec_jax.model.ssd4rec import SSD4Rec
from tests.packed import pack
from tests.timed import drawn, gaps

SMALL = ModelConfig(hidden_size=16, d_state=8, headdim=8, beta=0.3, dropout_prob=0.2, dtype='float64')
LENGTHS = [[1, 2, 3, 4, 5, 1, 33], [1500, 6]]


def batch():
    rng = np.random.default_rng(0)
    rows = [[(10 * r + s, rng.integers(1, 31, n).tolist()) for s, n in enumerate(row)] for r, row in enumerate(LENGTHS)]
    return pack(rows, tokens=1536, segments=8, gaps=gaps)


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


@pytest.mark.parametrize('layers,ngroups,norm_embedding,order,train,beta,time', [
    (1, 1, False, 'aligned', True, 0.3, 'dt'),
    *(pytest.param(*each, marks=pytest.mark.slow) for each in (
        (2, 2, True, 'reversed', True, 0.3, 'decay_and_dt'),
        (2, 1, True, 'reversed', False, 0.0, 'none'),  # without the backward direction
        (1, 1, True, 'reversed', False, 1.0, 'none'),
        (3, 2, True, 'aligned', True, 0.3, 'dt'),
    )),
])
def test_readout_and_every_gradient_equal_the_plain_form(
    x64, layers, ngroups, norm_embedding, order, train, beta, time
):
    config = dataclasses.replace(
        SMALL, num_layers=layers, ngroups=ngroups, norm_embedding=norm_embedding, backward_order=order, beta=beta,
        time=time,
    )
    graphdef, params = nnx.split(SSD4Rec(config, 30, rngs=nnx.Rngs(0)))
    params = drawn(params)
    ours, our_grads = value_and_gradients(SSD4Rec.readout, graphdef, params, batch(), train)
    plain, plain_grads = value_and_gradients(plain_readout, graphdef, params, batch(), train)
    np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-9 * np.abs(plain).max())
    named = jax.tree_util.tree_leaves_with_path(our_grads)
    for (path, a), b in zip(named, jax.tree.leaves(plain_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * np.abs(b).max(), err_msg=str(path))


# ---- The work that is saved at the published sizes.

D, INNER, STATE, HEADS = 256, 512, 64, 32
IN_PROJ, OUT_PROJ = D * (2 * INNER + 2 * STATE + HEADS), INNER * D
READ = 2 * (STATE + INNER)  # multiply-adds per token in the readouts of both directions of the last layer


def per_token(readout_of, items, train=False, **change):
    """The multiply-adds in matrix products that one more token costs."""
    config = ModelConfig(**{'num_layers': 1, 'norm_embedding': False, **change})
    graphdef, params = nnx.split(nnx.eval_shape(lambda: SSD4Rec(config, items, rngs=nnx.Rngs(0))))

    def multiply_adds(tokens):
        batch = pack([[(0, [1] * tokens)]], tokens=tokens, segments=2)
        layout = Layout.of(batch)
        draws = Draws.of(np.uint32(1), np.uint32(2), layout) if train else None

        def readout(params):
            return readout_of(nnx.merge(graphdef, params), batch.items, layout, draws)

        return work_of(jax.make_jaxpr(readout)(params)).matmul / 2

    return (multiply_adds(1024) - multiply_adds(512)) / 512


@pytest.mark.parametrize('order', BACKWARD_ORDERS)
def test_the_last_layer_projects_tokens_to_x_B_and_dt_alone(order):
    read = READ if order == 'reversed' else READ // 2
    assert per_token(SSD4Rec.readout, 5000, backward_order=order) == D * (INNER + STATE + HEADS) + read
    assert per_token(plain_readout, 5000) > 9 * per_token(SSD4Rec.readout, 5000)


def test_a_deeper_layer_has_one_projection_in_and_one_out():
    deeper = per_token(SSD4Rec.readout, 5000, num_layers=2) - per_token(SSD4Rec.readout, 5000)
    assert deeper == per_token(plain_readout, 5000) - IN_PROJ - OUT_PROJ


def test_layers_below_the_last_can_do_the_work_of_one_direction():
    last, forward, both = (
        per_token(SSD4Rec.readout, 5000, num_layers=2, **change) for change in (
            dict(bidirectional='last'), dict(beta=0.0), dict(),
        )
    )
    assert last == forward + READ // 2 < both


@pytest.mark.parametrize('norm_embedding, train, projected', [
    (False, False, False), (False, True, False), (True, False, False), (True, True, True),
])
def test_a_table_of_few_items_is_projected_for_tokens_unless_dropout_comes_before(norm_embedding, train, projected):
    found = per_token(SSD4Rec.readout, 30, train, norm_embedding=norm_embedding)
    assert found == READ + projected * D * (INNER + STATE + HEADS)


def test_a_table_is_projected_where_it_has_fewer_rows_than_there_are_tokens_and_fits(monkeypatch):
    model = SSD4Rec(dataclasses.replace(SMALL, dtype='float32'), 30, rngs=nnx.Rngs(0))
    assert [model.table_is_less_work(tokens) for tokens in (31, 32)] == [False, True]
    for room, fits in ((31 * model.config.in_proj_width, True), (31 * model.config.in_proj_width - 1, False)):
        monkeypatch.setattr(ssd4rec, 'MAX_PROJECTED', room)
        assert model.table_is_less_work(32) == fits
