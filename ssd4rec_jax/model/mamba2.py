"""The Mamba-2 mixer with one set of weights for both reading directions."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pallas_kernels import running_sum, ssd_readout, ssd_scan, ssd_step, ssd_weights_from_start
from pallas_kernels.ssd.gpu import gated_norm
from pallas_kernels.target import target
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.model.dense import dot_general
from ssd4rec_jax.model.gap_scales import GapScales
from ssd4rec_jax.model.implementation import named, named_implementation
from ssd4rec_jax.model.inputs import ItemInputs, TokenInputs
from ssd4rec_jax.model.layout import Layout, mirror_within_segment, of_history, take_tokens
from ssd4rec_jax.model.per_token import per_token
from ssd4rec_jax.model.prefix_state import BackwardState, MixerState
from ssd4rec_jax.model.short_conv import cut_convs, parts_of_short_convs, token_after, token_before
from ssd4rec_jax.model.silu import silu

Inputs = TokenInputs | ItemInputs
LINEAR_INIT = nnx.initializers.normal(0.02)
DT_MIN, DT_MAX = 1e-3, 1e-1


def init_dt_bias(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """The inverse softplus of a dt drawn log-uniformly from [DT_MIN, DT_MAX], as in the released Mamba-2."""
    log_dt = jax.random.uniform(key, shape, dtype, np.log(DT_MIN), np.log(DT_MAX))
    dt = jnp.exp(log_dt)
    return dt + jnp.log(-jnp.expm1(-dt))


def init_A_log(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """The log of an A drawn uniformly from [1, 16], as in the released Mamba-2."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))


class BidirectionalMamba2(nnx.Module):
    """The part f + beta * b of a Bi-SSD layer: Mamba-2 over each history (f) and over each reversed history (b).

    Both directions share their weights. The input projection acts on each token alone, so it is computed once for both;
    out_proj is linear, so it is applied once to the sum of both.

    Parameters: in_proj [D, z + x + B + C + dt], conv_kernel [d_conv, x + B + C], conv_bias [x + B + C], dt_bias [H],
    A_log [H], D_skip [H], norm [expand * D], out_proj [expand * D, D], where z, x, B, C and dt stand for the numbers of
    their columns, and unless model.time is 'none' those of gap_scales. All have the dtype param_dtype.
    """

    def __init__(self, config: ModelConfig, *, dtype, param_dtype, rngs: nnx.Rngs):
        self.config = config
        self.fused = named(config, 'pallas_gpu_fused')
        linear = dict(
            use_bias=False, kernel_init=LINEAR_INIT, dot_general=dot_general, dtype=dtype, param_dtype=param_dtype,
            rngs=rngs,
        )
        self.in_proj = nnx.Linear(config.hidden_size, config.in_proj_width, **linear)
        self.out_proj = nnx.Linear(config.d_inner, config.hidden_size, **linear)

        # As in torch's Conv1d: uniform within 1 / sqrt(fan_in), where a depthwise convolution has fan_in = d_conv.
        bound = config.d_conv**-0.5
        conv_init = nnx.initializers.uniform(2 * bound)

        def param(init, *shape):
            return nnx.Param(init(rngs.params(), shape, param_dtype))

        self.conv_kernel = param(conv_init, config.d_conv, config.conv_width)
        self.conv_kernel[...] -= bound
        self.conv_bias = param(conv_init, config.conv_width)
        self.conv_bias[...] -= bound
        self.dt_bias = param(init_dt_bias, config.num_heads)
        self.A_log = param(init_A_log, config.num_heads)
        self.D_skip = nnx.Param(jnp.ones(config.num_heads, param_dtype))
        self.gap_scales = None if config.time == 'none' else GapScales(config, param_dtype=param_dtype)
        self.norm = nnx.RMSNorm(
            config.d_inner, epsilon=1e-5, use_fast_variance=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(self, inputs: Inputs, layout: Layout) -> jax.Array:
        """f + beta * b at every token: [rows, tokens, D] in the module's dtype."""
        c = self.config
        z, projected = self._project(inputs, ('z',), ('x', 'B', 'C', 'dt'), apart=self.fused)
        directions = (False,) if c.beta == 0 else (False, True)
        convs, dt = self._convs(projected, layout, directions, 'B', 'C')
        return self.out_proj(self._gated_norms(z[..., :c.d_inner], layout, [
            self._scan(conv, dt, layout, reverse=reverse) for reverse, conv in zip(directions, convs, strict=True)
        ]))

    def readout(self, inputs: Inputs, layout: Layout) -> jax.Array:
        """f + beta * b at each history's last token only: [rows, segments, D], arbitrary in empty slots.

        All tokens are projected to x, B and dt; the other columns are computed only where they are read. In the
        'reversed' order the backward direction is read at the first token, where it has seen the whole history. In the
        'aligned' order it is read at the last token, where it starts, so that it depends on this token alone.
        """
        c = self.config
        (projected,) = self._project(inputs, ('x', 'B', 'dt'), apart=self.fused)
        directions = (False, True) if c.beta != 0 and c.backward_order == 'reversed' else (False,)
        convs, dt = self._convs(projected, layout, directions, 'B')
        forward, *backward = (
            self._query(inputs, conv, dt, layout, layout.starts if reverse else layout.ends, reverse=reverse)
            for reverse, conv in zip(directions, convs, strict=True)
        )
        if c.beta == 0:
            return self.out_proj(forward)
        if c.backward_order == 'aligned':
            xBC, dt, z = self._project_all(inputs, layout.ends)
            backward = [self._first_read(xBC, dt, silu(z))]
        return self.out_proj(self._sum(forward, *backward))

    def prefix_readouts(self, inputs: Inputs, layout: Layout) -> jax.Array:
        """The `readout` of the prefix that ends at each token, for all tokens at once: [rows, tokens, D].

        The value of the forward scan at a token does not depend on what follows, so it is that of the prefix; for the
        backward direction see _prefix_backward.
        """
        c = self.config
        z, projected = self._project(inputs, ('z',), ('x', 'B', 'C', 'dt'), apart=self.fused)
        (conv,), dt = self._convs(projected, layout, (False,), 'B', 'C')
        z = z[..., :c.d_inner]
        forward = self._gated_norms(z, layout, [self._scan(conv, dt, layout, reverse=False)])
        if c.beta == 0:
            return self.out_proj(forward)
        xBC = projected[..., :c.conv_width]
        if c.backward_order == 'reversed':
            backward = self._prefix_backward(xBC, dt, silu(z), layout)
        else:
            backward = self._first_read(xBC, dt, silu(z))
        return self.out_proj(self._sum(forward, backward))

    def no_tokens(self, users: int) -> MixerState:
        """The state of `prefix_step` before the first token."""
        return MixerState.empty(self.config, users, self._cast(self.conv_bias).dtype, self.dt_bias.dtype)

    def prefix_step(
        self, inputs: Inputs, gaps: jax.Array, number: jax.Array, state: MixerState
    ) -> tuple[jax.Array, MixerState]:
        """`prefix_readouts` at one more token of each history, and the state after it.

        inputs: the token of each of n users, [n, 1]. gaps: [n], those in time before it, 0 at a history's first token.
        number: int32 [n], how many tokens came before. Returns (f + beta * b [n, 1, D], the new state).
        """
        c = self.config
        xBC, dt, z = self._project_all(inputs)
        gate = silu(z)
        window = jnp.concatenate([state.recent, xBC], axis=1)
        kernel, bias = self._cast(self.conv_kernel), self._cast(self.conv_bias)
        conv = silu(sum(window[:, -1 - k, None] * kernel[-1 - k] for k in range(c.d_conv)) + bias)
        x, B, C = self._split_xBC(conv)
        timed_x, timed_dt = self._timed(x, dt, gaps[:, None])
        y, ssd = ssd_step(state.ssd, timed_x[:, 0], timed_dt[:, 0], self._A(), B[:, 0], C[:, 0])
        forward = per_token(self.norm, (y[:, None] + self._skip(x)).reshape(gate.shape) * gate)
        after = MixerState(window[:, 1:], ssd, None)
        if c.beta == 0:
            return self.out_proj(forward), after
        if c.backward_order == 'aligned':
            return self.out_proj(self._sum(forward, self._first_read(xBC, dt, gate))), after
        backward, carried = self._backward_step(window, dt, gate, gaps, number, state.backward)
        return self.out_proj(self._sum(forward, backward)), after._replace(backward=carried)

    def _backward_step(self, window, dt, gate, gaps, number, before):
        """_prefix_backward at one more token, and the state after it.

        window: [n, recent + 1, conv_width], the last raw inputs of the convolution.
        """
        c = self.config
        kernel, bias = self._cast(self.conv_kernel), self._cast(self.conv_bias)
        begins = (number == 0)[:, None]
        tap = jnp.where((number < c.d_conv)[:, None], kernel[jnp.maximum(c.d_conv - 1 - number, 0)], 0)
        first = jnp.where(begins, bias, before.first) + tap * window[:, -1]
        gate = jnp.where(begins, gate[:, 0], before.gate)
        # A token that another follows counts the gap between them.
        decay, input_ = (1, 1) if self.gap_scales is None else self.gap_scales(gaps[:, None])
        log_decay = before.log_decay + (before.dt[:, None] * decay * self._A())[:, 0]
        w = jnp.concatenate([
            before.weights[:, :-1], before.weights[:, -1:] * input_, dt * jnp.exp(log_decay)[:, None]
        ], axis=1)
        last = window.shape[1] - 1
        cut = jnp.stack([  # the convolution of each token of the window, over those that have come after it
            sum((window[:, at + k] * kernel[-1 - k] for k in range(min(last - at + 1, c.d_conv))), bias)
            for at in range(last + 1)
        ], axis=1)
        x, B, _ = self._split_xBC(silu(cut))
        first_x, _, C = self._split_xBC(silu(first))
        terms = self._weighted(w, jnp.broadcast_to(C[:, None], B.shape), B, x)
        total = before.total + terms[:, 0]  # Its convolution sees all of its taps now; zero where there is no token.
        read = (self._skip(first_x) + total + jnp.sum(terms[:, 1:], axis=1)).reshape(gate.shape).astype(gate.dtype)
        after = BackwardState(total, first, gate, log_decay, dt[:, 0], w[:, 1:])
        return per_token(self.norm, (read * gate)[:, None]), after

    def _project_all(self, inputs, at=None):
        """(x, B and C before the convolution, dt, z) at the tokens `at`, or at all tokens where it is None."""
        z, xBC, dt = self._project(inputs, ('z',), ('x', 'B', 'C'), ('dt',), at=at)
        return xBC, self._dt(dt), z

    def _dt(self, dt):
        wide = self.dt_bias.dtype
        return jax.nn.softplus(dt.astype(wide) + self.dt_bias[...])

    def _sum(self, forward, backward):
        """forward + beta * backward, both after the gated norm; out_proj is linear, so that one product serves both."""
        return forward + jnp.asarray(self.config.beta, forward.dtype) * backward

    def _scan(self, conv, dt, layout, *, reverse):
        """One direction at every token: [rows, tokens, expand * D].

        The backward direction is not flipped: its value stays at the token where the scan computes it.
        """
        x, B, C = self._by_head(*conv)
        scanned, dt = self._timed(x, dt, layout.gaps(reverse=reverse))
        # A scan that adds D x itself reads x once less. Times may change x, and D skips what they do.
        own = scanned is x and named(self.config, 'pallas_gpu', 'pallas_gpu_fused')
        y = ssd_scan(
            scanned, dt, self._A(), B, C, D=self.D_skip[...] if own else None, segment_ids=layout.segment_ids,
            reverse=reverse, implementation=named_implementation(self.config),
        )
        return (y if own else y + self._skip(x)).reshape(*y.shape[:2], -1)

    def _gated_norms(self, z, layout, ys):
        """f, or f + beta * b, before out_proj, from the scans of one or both directions: [rows, tokens, expand * D]."""
        c = self.config
        mirrored = (False, c.backward_order == 'reversed')[:len(ys)]
        kernels = named(c, 'pallas_gpu', 'pallas_gpu_fused')
        if kernels and gated_norm.why_not_gated_norms(z.dtype, c.d_inner) is None:
            how = gated_norm.GatedNorm((1.0, c.beta)[:len(ys)], mirrored, self.norm.epsilon, target().interpret)
            weight = self.norm.scale[...].astype(jnp.float32)
            return gated_norm.gated_norms(how, tuple(ys), z, weight, layout.mirror)
        gate = silu(z)
        normed = [per_token(self.norm, y * gate) for y in ys]
        normed = [mirror_within_segment(n, layout.mirror) if m else n for n, m in zip(normed, mirrored, strict=True)]
        return self._sum(*normed) if len(normed) == 2 else normed[0]

    def _query(self, inputs, conv, dt, layout, at, *, reverse):
        """One direction at one token of each history, after the gated norm: [rows, segments, expand * D].

        at: int32 [rows, segments], the token that the direction reads last.
        """
        x, B = self._by_head(*conv)
        C = self._conv_at(inputs, 'C', layout, at, reverse=reverse)
        y = ssd_readout(
            *self._timed(x, dt, layout.gaps(reverse=reverse)), self._A(), B, self._groups(C), layout.slot,
            reverse=reverse,
        )
        y += self._skip(take_tokens(x, at))
        (z,) = self._project(inputs, ('z',), at=at)
        gate = silu(z)
        return per_token(self.norm, y.reshape(gate.shape) * gate)

    def _timed(self, x, dt, gaps):
        """(x, dt) for a scan in which the gap before each token scales its decay and its input.

        The scan decays by exp(dt A) and takes in dt B x, so dt gets the decay's factor, and x what the input's differs.
        """
        if self.gap_scales is None:
            return x, dt
        decay, input_ = self.gap_scales(gaps)
        if self.gap_scales.input is not None:
            x = (x * (input_ / decay)[..., None]).astype(x.dtype)
        return x, dt * decay

    def _first_read(self, xBC, dt, gate):
        """A direction's value, after the gated norm, at the token that it reads first: a function of that token.

        No token is read before it, so there is no gap.
        """
        x, B, C = self._split_xBC(silu(xBC * self._cast(self.conv_kernel)[-1] + self._cast(self.conv_bias)))
        y = self._weighted(dt, C, B, x).astype(x.dtype) + self._skip(x)
        return per_token(self.norm, y.reshape(gate.shape) * gate)

    def _prefix_backward(self, xBC, dt, gate, layout):
        """The backward direction in 'reversed' order for the prefix that ends at each token e, after the gated norm.

        It is read at token 1, the first of the history, after it has gone through the whole prefix: there it is the sum
        over k <= e of w_k (C_1 . B_k) x_k. The weight w_k decays from token 1 and does not depend on e, so the sum is a
        running sum over the history. Two things depend on where the prefix ends. The convolution reads no token after
        e; this changes B and x of the last d_conv - 1 tokens and, while e < d_conv, C and x of token 1. And token e is
        read first, so that the gap after it does not count; this changes w_e.
        """
        c = self.config
        cut = cut_convs(xBC, self._cast(self.conv_kernel), self._cast(self.conv_bias), layout)
        w, w_end = self._weights_from_start(dt, layout)

        # Token 1's x, B and C in prefixes of 1, 2, ..., d_conv tokens, then for each token those of its own prefix.
        first = silu(jnp.stack([take_tokens(conv, layout.starts) for conv in cut], axis=2))
        first = of_history(first, layout.slot, jnp.minimum(layout.position, c.d_conv - 1))
        first_x, _, C = jnp.split(first, [c.d_inner, c.d_inner + c.ngroups * c.d_state], axis=-1)

        total = self._skip(self._heads(first_x)).astype(dt.dtype)
        cut = cut if len(cut) > 1 else cut * 2  # The end has a term of its own.
        for distance, conv in enumerate(cut):  # distance = e - k
            x, B, _ = self._split_xBC(silu(conv))
            term = self._weighted(w if distance else w_end, self._groups(token_after(C, distance, layout)), B, x)
            term = term.reshape(*w.shape[:2], -1)
            if distance == len(cut) - 1:  # For k and all tokens before it, the convolution sees all of its taps.
                term = running_sum(term, layout.slot, reverse=False)
            total = total + token_before(term, distance, layout).reshape(total.shape)
        gate = of_history(take_tokens(gate, layout.starts), layout.slot)
        return per_token(self.norm, total.reshape(gate.shape).astype(gate.dtype) * gate)

    def _weights_from_start(self, dt, layout):
        """(w_k of _prefix_backward [rows, tokens, heads] for a token k that others follow, that for the last token)."""
        if self.gap_scales is None:
            w = ssd_weights_from_start(dt, self._A(), layout.slot)
            return w, w
        decay, input_ = self.gap_scales(layout.gaps(reverse=True))
        before = ssd_weights_from_start(dt * decay, self._A(), layout.slot) / decay
        return before * input_, before

    def _weighted(self, w, C, B, x):
        """w (C . B) x for each head, [rows, n, heads, headdim] in w's dtype.

        w: [rows, n, heads]. C, B: [rows, n, groups, state]. x: [rows, n, heads, headdim].
        """
        c = self.config
        score = jnp.repeat(
            jnp.einsum('blgn,blgn->blg', B.astype(w.dtype), C.astype(w.dtype)), c.num_heads // c.ngroups, axis=-1
        )
        return jnp.einsum('blh,blhp->blhp', w * score, x.astype(w.dtype))

    def _convs(self, projected, layout, directions, *others):
        """The short convolution of x and `others`, out of B and C, in each of the directions, cut into these; and dt.

        projected: [rows, tokens, columns], what in_proj gives for all of them, in this order.
        """
        c = self.config
        widths = (c.d_inner, *[c.ngroups * c.d_state] * len(others))
        convs, dt = parts_of_short_convs(
            projected, self.conv_kernel[...][:, :sum(widths)], self.conv_bias[...][:sum(widths)], layout, directions,
            widths, fused=self.fused,
        )
        return convs, self._dt(dt[..., :c.num_heads])

    def _conv_at(self, inputs, name, layout, at, *, reverse):
        """silu of the short convolution of the columns `name` at one token of each history: [rows, segments, columns].

        Only the tokens under the convolution's taps are projected. at: int32 [rows, segments].
        """
        c = self.config
        columns = self._columns()[name]
        channels = slice(columns.start - c.d_inner, columns.stop - c.d_inner)  # z comes before the convolved columns.
        kernel, bias = self._cast(self.conv_kernel)[:, channels], self._cast(self.conv_bias)[channels]
        distance = jnp.arange(c.d_conv, dtype=at.dtype)[:, None]
        inside = layout.lengths[:, None] > distance
        token = jnp.where(inside, at[:, None] + (distance if reverse else -distance), 0)  # [rows, d_conv, segments]
        (taps,) = self._project(inputs, (name,), at=token.reshape(len(at), -1))
        taps = taps.reshape(*token.shape, -1)
        taps = jnp.where(inside[..., None], taps, jnp.zeros_like(taps)) * kernel[::-1, None]
        return silu(bias + sum(taps[:, k] for k in range(c.d_conv)))

    def _columns(self) -> dict[str, slice]:
        """The columns of in_proj, by the name of what they give."""
        c = self.config
        state = c.ngroups * c.d_state
        widths = {'z': c.d_inner, 'x': c.d_inner, 'B': state, 'C': state, 'dt': c.num_heads}
        stops = dict(zip(widths, itertools.accumulate(widths.values()), strict=True))
        return {name: slice(stops[name] - width, stops[name]) for name, width in widths.items()}

    def _project(self, inputs, *parts: tuple[str, ...], at=None, apart=False):
        """What in_proj gives under these names at the tokens `at`, or at all tokens where it is None.

        Each part is an array with the columns of its names side by side, and with apart zeros may follow them.
        """
        columns = self._columns()
        by_part = [[columns[name] for name in part] for part in parts]
        return inputs.project(self._cast(self.in_proj.kernel), by_part, at, apart=apart)

    def _cast(self, param):
        return param[...].astype(self.in_proj.dtype)

    def _A(self):
        return -jnp.exp(self.A_log[...])

    def _skip(self, x):
        D = self.D_skip[...][:, None]
        return (D * x.astype(D.dtype)).astype(x.dtype)

    def _split_xBC(self, xBC):
        c = self.config
        return self._by_head(*jnp.split(xBC, [c.d_inner, c.d_inner + c.ngroups * c.d_state], axis=-1))

    def _by_head(self, x, *of_groups):
        """x, B and C, each with an axis of heads or groups."""
        return self._heads(x), *(self._groups(a) for a in of_groups)

    def _heads(self, x):
        return x.reshape(*x.shape[:-1], self.config.num_heads, self.config.headdim)

    def _groups(self, B):
        return B.reshape(*B.shape[:-1], self.config.ngroups, self.config.d_state)
