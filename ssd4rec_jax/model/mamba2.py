"""The Mamba-2 mixer with one set of weights for both reading directions."""
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pallas_kernels import ssd_scan
from ssd4rec_jax.model.config import ModelConfig
from ssd4rec_jax.model.layout import Layout, mirror_within_segment
from ssd4rec_jax.model.short_conv import short_conv

LINEAR_INIT = nnx.initializers.normal(0.02)
DT_MIN, DT_MAX = 1e-3, 1e-1


def _init_dt_bias(key, shape, dtype):
    """Inverse softplus of dt, log-uniform in [DT_MIN, DT_MAX] (Mamba-2's released init)."""
    log_dt = jax.random.uniform(key, shape, dtype, np.log(DT_MIN), np.log(DT_MAX))
    dt = jnp.exp(log_dt)
    return dt + jnp.log(-jnp.expm1(-dt))


def _init_A_log(key, shape, dtype):
    return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))


class BidirectionalMamba2(nnx.Module):
    """f + beta * b of one Bi-SSD layer: Mamba-2 over each history and over each history reversed.

    Both directions share the weights, so the input is projected once (the projection acts on each token alone)
    and, out_proj being linear, the sum of both directions is projected back once.

    Parameters: in_proj [D, z + x + B + C + dt], conv_kernel [d_conv, x + B + C], conv_bias, dt_bias [H],
    A_log [H], D_skip [H], norm [expand * D], out_proj [expand * D, D]; all float32 unless param_dtype says.
    """

    def __init__(self, config: ModelConfig, *, dtype, param_dtype, rngs: nnx.Rngs):
        self.config = config
        linear = dict(use_bias=False, kernel_init=LINEAR_INIT, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.in_proj = nnx.Linear(config.hidden_size, config.in_proj_width, **linear)
        self.out_proj = nnx.Linear(config.d_inner, config.hidden_size, **linear)

        # torch's Conv1d: uniform within 1 / sqrt(fan_in), fan_in = d_conv for a depthwise convolution.
        bound = config.d_conv**-0.5
        conv_init = nnx.initializers.uniform(2 * bound)

        def param(init, *shape):
            return nnx.Param(init(rngs.params(), shape, param_dtype))

        self.conv_kernel = param(conv_init, config.d_conv, config.conv_width)
        self.conv_kernel[...] -= bound
        self.conv_bias = param(conv_init, config.conv_width)
        self.conv_bias[...] -= bound
        self.dt_bias = param(_init_dt_bias, config.num_heads)
        self.A_log = param(_init_A_log, config.num_heads)
        self.D_skip = nnx.Param(jnp.ones(config.num_heads, param_dtype))
        self.norm = nnx.RMSNorm(
            config.d_inner, epsilon=1e-5, use_fast_variance=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(self, u: jax.Array, layout: Layout) -> jax.Array:
        """u [rows, tokens, D] -> [rows, tokens, D], dtype of the module."""
        d_inner = self.config.d_inner
        z, xBC, dt = jnp.split(self.in_proj(u), [d_inner, d_inner + self.config.conv_width], axis=-1)
        wide = self.dt_bias.dtype
        dt = jax.nn.softplus(dt.astype(wide) + self.dt_bias[...])
        gate = jax.nn.silu(z)
        forward = self._read(xBC, dt, gate, layout, reverse=False)
        backward = self._read(xBC, dt, gate, layout, reverse=True)
        if self.config.backward_order == 'reversed':
            backward = mirror_within_segment(backward, layout.mirror)
        return self.out_proj(forward + jnp.asarray(self.config.beta, forward.dtype) * backward)

    def _read(self, xBC, dt, gate, layout, *, reverse):
        """One direction up to its gated norm: [rows, tokens, expand * D], backward left in place."""
        c = self.config
        kernel, bias = (w[...].astype(xBC.dtype) for w in (self.conv_kernel, self.conv_bias))
        xBC = jax.nn.silu(short_conv(xBC, kernel, bias, layout, reverse=reverse))
        x, B, C = jnp.split(xBC, [c.d_inner, c.d_inner + c.ngroups * c.d_state], axis=-1)
        lead = x.shape[:2]
        y = ssd_scan(
            x.reshape(*lead, c.num_heads, c.headdim),
            dt,
            -jnp.exp(self.A_log[...]),
            B.reshape(*lead, c.ngroups, c.d_state),
            C.reshape(*lead, c.ngroups, c.d_state),
            D=self.D_skip[...],
            segment_ids=layout.segment_ids,
            reverse=reverse,
        )
        return self.norm(y.reshape(*lead, c.d_inner) * gate)
