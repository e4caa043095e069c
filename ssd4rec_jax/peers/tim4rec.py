"""TiM4Rec: state space duality whose steps are scaled by the time between interactions.

Fan et al., "TiM4Rec: an efficient sequential recommendation model based on time-aware structured state space duality"
(2024), figure 1, in the order of its released code (github.com/AlwaysFHao/TiM4Rec) and with the activation, hard swish,
that it has at its published sizes. Gaps beyond 1,999 typical ones count as so many (ssd4rec_jax.data.gaps), and behind
the newest item there are none, where RecBole's padding makes one as long as the time since 1970.
"""
import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels import ssd_scan
from ssd4rec_jax.config.peers import TiM4RecConfig
from ssd4rec_jax.model.draws import Draws, dropout
from ssd4rec_jax.model.layout import Layout, of_history
from ssd4rec_jax.model.mamba2 import init_A_log, init_dt_bias
from ssd4rec_jax.model.networks import register_network
from ssd4rec_jax.model.per_token import per_token
from ssd4rec_jax.model.short_conv import causal_conv
from ssd4rec_jax.model.silu import silu
from ssd4rec_jax.model.table_init import init_table
from ssd4rec_jax.peers.causal import Factory, conv_init
from ssd4rec_jax.peers.layered import FeedForward, LayeredNetwork

EPSILON = 1e-5


class TiM4Rec(LayeredNetwork):
    """Parameters: item_embedding [items + 1, D], a LayerNorm over D and one over the gaps, and those of the layers.

    How a gap counts depends on all gaps of the history, so that its prefixes share no pass.
    """

    config: TiM4RecConfig

    def __init__(self, config: TiM4RecConfig, num_items: int, *, rngs: nnx.Rngs):
        make = Factory(config, rngs)
        super().__init__(config, make, make.param(init_table, num_items + 1, config.hidden_size))
        self.norm = make.norm(config.hidden_size, EPSILON)
        self.time_norm = make.norm(config.max_length, EPSILON)
        self.layers = nnx.List([TiSSDLayer(config, make) for _ in range(config.num_layers)])

    def inputs(self, items: jax.Array, layout: Layout, draws: Draws | None) -> jax.Array:
        """LayerNorm(dropout(item vector))."""
        return per_token(self.norm, dropout(self.embedded(items), self.config.dropout_prob, draws, 'embedding'))

    def carried(self, layout: Layout, draws: Draws | None) -> jax.Array:
        """The gaps before each item of each history, after LayerNorm: [rows, segments, heads, max_length]."""
        # The inverse of Gaps.numbers, in typical gaps.
        numbers = layout.gaps(reverse=False).astype(jnp.promote_types(self.dtype, jnp.float32))
        gaps = jnp.where(layout.position > 0, 2 * 10**numbers - 1, 0).astype(self.dtype)
        gaps = dropout(gaps[..., None], self.config.dropout_prob, draws, 'gaps')[..., 0]
        place = jnp.arange(self.config.max_length)
        index = layout.starts[..., None] + place
        of_histories = jax.vmap(lambda row, at: row.at[at].get(mode='clip'))(gaps, index)
        normed = per_token(self.time_norm, jnp.where(place < layout.lengths[..., None], of_histories, 0))
        return jnp.repeat(normed[:, :, None], self.config.num_heads, axis=2)


class TiSSDLayer(nnx.Module):
    """LayerNorm(dropout(scan(u)) + u), in a network of one layer LayerNorm(dropout(scan(u))), then the ffn."""

    def __init__(self, config: TiM4RecConfig, make: Factory):
        self.config = config
        width, rate, heads = config.hidden_size, config.dropout_prob, config.num_heads
        convolved = config.d_inner + 2 * config.d_state
        self.time = TimeScale(config, make)
        self.in_proj = make.linear(width, config.d_inner + convolved + heads)
        self.conv_kernel = make.param(conv_init, config.d_conv, convolved)
        self.conv_bias = make.param(conv_init, convolved, fan_in=config.d_conv)
        self.dt_bias = make.param(init_dt_bias, heads)
        self.A_log = make.param(init_A_log, heads)
        self.D_skip = make.param(nnx.initializers.ones, heads)
        self.scan_norm = nnx.RMSNorm(
            config.d_inner, epsilon=EPSILON, use_fast_variance=False, dtype=make.dtype, param_dtype=make.param_dtype,
            rngs=make.rngs,
        )
        self.out_proj = make.linear(config.d_inner, width)
        self.norm = make.norm(width, EPSILON)
        self.ffn = FeedForward(
            width, 4 * width, make, dropout_prob=rate, inner_dropout_prob=rate, epsilon=1e-12,
            activation=jax.nn.hard_swish,
        )

    def mix(
        self, u: jax.Array, gaps: jax.Array, layout: Layout, draws: Draws | None, name: str
    ) -> tuple[jax.Array, jax.Array]:
        """As in Layer; the gaps are carried from layer to layer."""
        scale, gaps = self.time(gaps, draws and draws.at(layout.ends), name)
        mixed = dropout(self._scan(u, scale, layout), self.config.dropout_prob, draws, f'{name}.mixer')
        return per_token(self.norm, mixed if self.config.num_layers == 1 else mixed + u), gaps

    def _scan(self, u, scale, layout):
        """The mixer, with the steps of each head times scale [rows, segments, heads, max_length]."""
        c = self.config
        z, xBC, dt = jnp.split(
            per_token(self.in_proj, u), [c.d_inner, 2 * c.d_inner + 2 * c.d_state], axis=-1
        )
        kernel, bias = (w[...].astype(xBC.dtype) for w in (self.conv_kernel, self.conv_bias))
        xBC = jax.nn.hard_swish(causal_conv(xBC, kernel, bias, layout))
        x, B, C = jnp.split(xBC, [c.d_inner, c.d_inner + c.d_state], axis=-1)
        dt = dt * of_history(jnp.swapaxes(scale, 2, 3), layout.slot, layout.position)
        y = ssd_scan(
            x.reshape(*x.shape[:2], c.num_heads, c.headdim), dt.astype(self.dt_bias.dtype), -jnp.exp(self.A_log[...]),
            B[:, :, None], C[:, :, None], D=self.D_skip[...], dt_bias=self.dt_bias[...], dt_softplus=True,
            segment_ids=layout.segment_ids,
        )
        return per_token(self.out_proj, per_token(self.scan_norm, y.reshape(z.shape) * silu(z)))


class TimeScale(nnx.Module):
    """What the gaps of a history do to the steps of each head, and the gaps that the next layer reads."""

    def __init__(self, config: TiM4RecConfig, make: Factory):
        self.dropout_prob = config.time_dropout_prob
        length, shape = config.max_length, (config.d_conv, config.num_heads)
        self.scale_1, self.scale_2 = (make.linear(length, length) for _ in range(2))
        self.gate = make.linear(length, length if config.p2p_residual else 1)
        self.kernels = nnx.List([make.param(conv_init, *shape) for _ in range(2)])
        self.biases = nnx.List([make.param(conv_init, shape[1], fan_in=shape[0]) for _ in range(2)])
        self.norm = make.norm(length, EPSILON)

    def __call__(self, gaps: jax.Array, draws: Draws | None, name: str) -> tuple[jax.Array, jax.Array]:
        """(factors, gaps of the next layer) from gaps; all are [rows, segments, heads, max_length].

        draws: those of each history.
        """
        inner = silu(per_token(self.scale_1, self.dropped(gaps, draws, f'{name}.scale')))
        scale = gaps * per_token(self.scale_2, inner)
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            taps = kernel[...].astype(scale.dtype)[::-1, :, None]
            before = (jnp.pad(scale, [(0, 0)] * 3 + [(k, 0)])[..., :scale.shape[-1]] for k in range(len(taps)))
            conv = sum(x * tap for x, tap in zip(before, taps, strict=True))
            scale = jax.nn.hard_swish(conv + bias[...].astype(scale.dtype)[:, None])
        gate = jax.nn.sigmoid(per_token(self.gate, self.dropped(gaps, draws, f'{name}.gate')))
        return scale, per_token(self.norm, gate * gaps + (1 - gate) * scale)

    def dropped(self, gaps: jax.Array, draws: Draws | None, name: str) -> jax.Array:
        """The gaps after dropout; draws: those of each history."""
        flat = gaps.reshape(*gaps.shape[:2], -1)
        return dropout(flat, self.dropout_prob, draws, name).reshape(gaps.shape)


register_network('tim4rec', TiM4RecConfig, TiM4Rec)
