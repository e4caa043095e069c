"""The LayerNorm that a GPU differentiates by itself, beside flax's."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels.target import tracing_for
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.model.norms import layer_norm


@pytest.mark.parametrize('dtype, tolerance', [('float64', 1e-12), ('bfloat16', 0.02)])
def test_on_a_gpu_it_is_flaxs_with_the_same_gradients(x64, dtype, tolerance):
    rng = np.random.default_rng(0)
    module = layer_norm(ModelConfig(hidden_size=32), dtype=jnp.dtype(dtype), param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    graph, params = nnx.split(module)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), params)
    x, g = (jnp.asarray(rng.normal(size=(12, 32)), dtype) for _ in range(2))

    def values(platform):
        with tracing_for(platform):
            y, pull = jax.vjp(lambda params, x: nnx.merge(graph, params)(x), params, x)
            return y, pull(g)

    for ours, flaxs in zip(jax.tree.leaves(values('gpu')), jax.tree.leaves(values('cpu')), strict=True):
        assert ours.dtype == flaxs.dtype
        ours, flaxs = np.asarray(ours, np.float64), np.asarray(flaxs, np.float64)
        np.testing.assert_allclose(ours, flaxs, rtol=0, atol=tolerance * np.abs(flaxs).max())
