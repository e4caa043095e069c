"""The whole model with interpreted Pallas kernels, compared with the same model on xla."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import tracing_for
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.model.draws import Draws
from ssd4rec_jax.model.implementation import ssd_implementation
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.ssd4rec import SSD4Rec
from tests.packed import pack
from tests.timed import drawn, gaps

SMALL = ModelConfig(
    hidden_size=32, num_layers=2, d_state=16, headdim=16, beta=0.3, dropout_prob=0.0, time='decay_and_dt',
    dtype='float64',
)


def value_and_gradients(implementation):
    config = dataclasses.replace(SMALL, ssd_implementation=implementation)
    graphdef, params = nnx.split(SSD4Rec(config, 30, rngs=nnx.Rngs(0)))
    params = drawn(params)
    rng = np.random.default_rng(1)
    rows = [[3, 1, 40, 2], [70]]
    batch = pack(
        [[(10 * r + s, rng.integers(1, 31, n).tolist()) for s, n in enumerate(row)] for r, row in enumerate(rows)],
        tokens=80, segments=8, gaps=gaps,
    )
    layout = Layout.of(batch)
    cotangent = jnp.where((batch.lengths > 0)[..., None], rng.normal(size=(2, 8, 32)), 0.0)

    def scalar(params):
        return jnp.sum(nnx.merge(graphdef, params).readout(batch.items, layout) * cotangent)

    value, grads = jax.jit(jax.value_and_grad(scalar))(params)
    return float(value), nnx.to_pure_dict(grads)


@pytest.mark.slow
def test_pallas_tpu_gives_the_same_value_and_gradients_as_xla(x64):
    expected, expected_grads = value_and_gradients('xla')
    with tracing_for('tpu', interpret=True):
        value, grads = value_and_gradients('pallas_tpu')
    assert abs(value - expected) < 1e-10 * abs(expected)

    def check(ours, theirs):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10 * max(np.abs(theirs).max(), 1e-9))

    jax.tree.map(check, grads, expected_grads)


def of_draws(dtype, implementation):
    """The value and gradients, with dropout, of a network of two layers that kernels of a GPU can serve."""
    config = ModelConfig(
        hidden_size=64, num_layers=2, d_state=16, headdim=16, beta=0.3, dropout_prob=0.3, dtype=dtype,
        ssd_implementation=implementation,
    )
    graphdef, params = nnx.split(SSD4Rec(config, 30, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    batch = pack([[(0, rng.integers(1, 31, n).tolist()) for n in (3, 1, 40, 2)]], tokens=64, segments=4)
    layout = Layout.of(batch)
    draws = Draws.of(jnp.uint32(3), jnp.uint32(0), layout)
    cotangent = jnp.asarray(rng.normal(size=(1, 4, 64)), jnp.float32)

    def scalar(params):
        readout = nnx.merge(graphdef, params).readout(batch.items, layout, draws).astype(jnp.float32)
        return jnp.sum(readout * cotangent), readout

    (_, readout), grads = jax.jit(jax.value_and_grad(scalar, has_aux=True))(params)
    return {'readout': readout, **nnx.to_pure_dict(grads)}


@pytest.mark.slow
@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason='the kernels of a GPU need JAX 0.11')
def test_pallas_gpu_fused_is_as_near_to_float32_as_xla_in_bfloat16():
    exact, rounded = of_draws('float32', 'xla'), of_draws('bfloat16', 'xla')
    with tracing_for('gpu', interpret=True):
        ours = of_draws('bfloat16', 'pallas_gpu_fused')

    def check(ours, rounded, exact):
        error, of_xla = (np.sqrt(np.mean((a - exact) ** 2)) for a in (ours, rounded))
        scale = np.sqrt(np.mean(exact**2))
        assert error <= 2 * of_xla + 1e-3 * scale and error < 0.1 * scale

    jax.tree.map(check, ours, rounded, exact)


def test_what_runs_is_chosen_by_platform_and_shape():
    auto = ModelConfig()
    assert ssd_implementation(auto, 8, 512) == 'xla'
    with tracing_for('tpu'):
        assert ssd_implementation(auto, 8, 512) == 'pallas_tpu'
        assert ssd_implementation(dataclasses.replace(auto, headdim=8), 8, 512) == 'xla'
        assert ssd_implementation(dataclasses.replace(auto, ssd_implementation='xla'), 8, 512) == 'xla'


@pytest.mark.parametrize('name,said', [
    ('pallas_tpu', 'model.ssd_implementation=pallas_tpu: pallas_tpu runs on TPUs and this program is for cpu'),
    ('cuda', "model.ssd_implementation=cuda: implementation='cuda' is unknown: there are "),
])
def test_one_that_cannot_serve_is_refused_with_the_reason(name, said):
    with pytest.raises(ConfigError, match=said):
        ssd_implementation(ModelConfig(ssd_implementation=name), 8, 512)
