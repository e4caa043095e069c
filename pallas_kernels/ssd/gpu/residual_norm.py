"""LayerNorm of a sum, with dropout after or before it, forward and backward, each as one Mosaic GPU kernel.

    x = a + u or a;    n = (x - mean(x)) / sqrt(var(x) + epsilon);    out = drop(n scale + shift)

XLA writes the sum, the normalized values and masked gradients to memory and reads them again. These kernels read a, u
and the result's gradient once, make everything else again, and write the result, and in the backward pass the gradient
of x and what each program adds to those of scale and shift. A program works on a run of tokens, STEP at a time, while
the next ones are loaded.
"""
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

from pallas_kernels.hashing import channel_words
from pallas_kernels.ssd.gpu import tiles, tokens
from pallas_kernels.ssd.gpu.drops import dropped
from pallas_kernels.ssd.gpu.tiles import over_rows, plgpu
from pallas_kernels.ssd.gpu.tokens import AT_ONCE, LANES, MOST_CHANNELS, mean_of_token, read

STEP = 8
SLOTS = 2  # Several programs share a multiprocessor, so that few buffers of each keep enough bytes on their way.
MULTIPROCESSORS = 132
AT_A_TIME = 8  # The programs that a multiprocessor has registers for.
RESERVED = 3 * 1024  # Shared memory of a program for barriers, keys, sums over warps, and the system.
MOST_STEPS = 32  # A program's keys are one copy, of at most 256 values.


class ResidualNorm(NamedTuple):
    """What a call computes.

    dropout: the probability with which an element is dropped. drops_first: drop elements of a + u instead of the
    result. epsilon: added to the variance. interpret: run the kernels in the interpreter.
    """

    dropout: float = 0.0
    drops_first: bool = False
    epsilon: float = 1e-12
    interpret: bool = False


def why_not_residual_norm(a_dtype: DTypeLike, channels: int) -> str | None:
    """The reason why residual_norm cannot serve a call, as a sentence, or None if it can."""
    if obstacle := tiles.why_not('residual norm', 'its input', a_dtype):
        return obstacle
    if channels % LANES or channels > MOST_CHANNELS:
        return (f'the kernel of the residual norm takes multiples of {LANES} channels up to {MOST_CHANNELS}, '
                f'not {channels}')
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def residual_norm(
    how: ResidualNorm, a: jax.Array, u: jax.Array | None, scale: jax.Array, shift: jax.Array, keys: jax.Array | None
) -> jax.Array:
    """dropout(LayerNorm(a + u)), or LayerNorm(dropout(a + u)) with how.drops_first.

    Args:
      how: what to compute.
      a: [rows, tokens, channels], bfloat16.
      u: like a, or None for zeros.
      scale, shift: [channels], float32.
      keys: uint32 [rows, tokens], from which a token's draws are made (drops.py), or None for no dropout.

    Returns an array like a. It computes in float32. A token that is not finite gives NaN in its own elements alone.
    """
    return _residual_norm(how, a, u, scale, shift, keys)


def _residual_norm(how, a, u, scale, shift, keys):
    call = _Call(how, (a, u), (scale, shift), keys)

    def kernel(*refs):
        *refs, out_ref, once, out_smem, barrier = refs
        here = _Here(call, refs, once, barrier)

        def step(*refs):
            *x_smem, made_smem, k = refs
            here.wait(k)
            for first in range(0, STEP, AT_ONCE):
                now = pl.ds(first, AT_ONCE)
                before, after = here.dropouts(k * STEP + first)
                n, _ = _normalized(how, before(_sum(x_smem, now)))
                made_smem.at[now][...] = after(n * here.values(0) + here.values(1)).astype(jnp.bfloat16)
            return k + 1

        here.pipeline(step, out_smem, out_ref, jnp.int32(0))

    return call.like(a, call.run(kernel, call.out))


def _residual_norm_gradients(how, arguments, g):
    a, u, scale, keys = arguments
    call = _Call(how, (g, a, u), (scale,), keys)
    sums = jax.ShapeDtypeStruct((call.programs, *call.channels), jnp.float32)

    def kernel(*refs):
        *refs, dx_ref, dscale_ref, dshift_ref, once, dx_smem, barrier, dscale_smem, dshift_smem = refs
        here = _Here(call, refs, once, barrier)

        def step(*refs):
            g_smem, *x_smem, made_smem, (k, dscale, dshift) = refs
            here.wait(k)
            for first in range(0, STEP, AT_ONCE):
                now = pl.ds(first, AT_ONCE)
                before, after = here.dropouts(k * STEP + first)
                n, inverse = _normalized(how, before(_sum(x_smem, now)))
                g = after(read(g_smem.at[now]))
                dn = g * here.values(0)
                dscale, dshift = dscale + g * n, dshift + g
                mean, along = (over_rows(mean_of_token(d), n.shape) for d in (dn, dn * n))
                made_smem.at[now][...] = before(inverse * (dn - mean - n * along)).astype(jnp.bfloat16)
            return k + 1, dscale, dshift

        nothing = jnp.zeros((AT_ONCE, *call.channels), jnp.float32)
        nothing = plgpu.layout_cast(nothing, tokens.layout(nothing.ndim))
        _, dscale, dshift = here.pipeline(step, dx_smem, dx_ref, (jnp.int32(0), nothing, nothing))
        dscale_smem[...], dshift_smem[...] = jnp.sum(dscale, axis=0), jnp.sum(dshift, axis=0)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(dscale_smem, dscale_ref.at[here.program])
        plgpu.copy_smem_to_gmem(dshift_smem, dshift_ref.at[here.program])
        plgpu.wait_smem_to_gmem(0)

    dx, *parts = call.run(kernel, (call.out, sums, sums), *[plgpu.SMEM(call.channels, jnp.float32)] * 2)
    dx, (dscale, dshift) = call.like(a, dx), (jnp.sum(part, axis=0).reshape(scale.shape) for part in parts)
    return dx, None if u is None else dx, dscale, dshift, None


residual_norm.defvjp(
    lambda how, a, u, scale, shift, keys: (_residual_norm(how, a, u, scale, shift, keys), (a, u, scale, keys)),
    _residual_norm_gradients,
)


def _normalized(how, x):
    """(x with mean 0 and variance 1 for each token, 1 / the standard deviation)."""
    centred = x - over_rows(mean_of_token(x), x.shape)
    inverse = over_rows(lax.rsqrt(mean_of_token(centred * centred) + how.epsilon), x.shape)
    return centred * inverse, inverse


def _sum(refs, now):
    return sum(read(ref.at[now]) for ref in refs)


class _Call:
    """A call of a kernel.

    streams: what a program reads STEP tokens at a time. once: what it reads at its start, values of the channels and,
    with dropout, the words of the channels and the keys of its tokens.
    """

    def __init__(self, how: ResidualNorm, streams: Any, values: Any, keys: Any) -> None:
        self.how = how
        self.streams = [tokens.flat(a, STEP) for a in streams if a is not None]
        total, self.channels = len(self.streams[0]), self.streams[0].shape[1:]
        self.steps = total // STEP
        self.out = jax.ShapeDtypeStruct(self.streams[0].shape, jnp.bfloat16)
        # As many programs as the chip holds, so that they start and end together.
        of_channel = SLOTS * STEP * 2 * (len(self.streams) + 1) + 4 * 4
        at_a_time = min(AT_A_TIME, tiles.SHARED_MEMORY // (of_channel * math.prod(self.channels) + RESERVED))
        self.programs = min(self.steps, max(MULTIPROCESSORS * at_a_time, -(-self.steps // MOST_STEPS)))
        self.once = [tokens.by_lanes(a) for a in values]
        self.drops = keys is not None and how.dropout > 0
        if self.drops:
            words = tokens.by_lanes(jnp.asarray(channel_words(values[0].size)))
            # A program that works on one step less than others still reads as many keys.
            self.once += [words, jnp.pad(keys.reshape(-1), (0, (self.steps + 1) * STEP - keys.size))]

    @property
    def most_tokens(self) -> int:
        """The tokens of a program that works on the most."""
        return -(-self.steps // self.programs) * STEP

    def run(self, kernel: Any, out_type: Any, *scratch: Any) -> Any:
        """Call the kernel with refs of `once`, `streams` and the results, buffers for `once` and a result, a barrier,
        and `scratch`."""
        once = [plgpu.SMEM(self.channels, a.dtype) for a in self.once]
        if self.drops:
            once[-1] = plgpu.SMEM((self.most_tokens,), jnp.uint32)
        made = plgpu.SMEM((SLOTS, STEP, *self.channels), jnp.bfloat16, transforms=tokens.transforms())
        return tiles.call(
            kernel, out_type, *self.once, *self.streams, grid=(self.programs,), grid_names=('program',),
            scratch_types=[once, made, plgpu.Barrier(num_arrivals=len(once)), *scratch],
            interpret=self.how.interpret,
        )

    def like(self, a: jax.Array, made: jax.Array) -> jax.Array:
        """What was made of the tokens of a, in its shape."""
        return made[:a.shape[0] * a.shape[1]].reshape(a.shape)


class _Here:
    """What a program of a call reads, and its pipeline."""

    def __init__(self, call: _Call, refs: Any, once: Any, barrier: Any) -> None:
        self.call, self.once, self.barrier, self.program = call, once, barrier, lax.axis_index('program')
        each, more = divmod(call.steps, call.programs)
        self.first = self.program * each + jnp.minimum(self.program, more)
        self.steps = each + jnp.where(self.program < more, 1, 0) if more else each
        sources, self.streams = [*refs[:len(once)]], refs[len(once):]
        if call.drops:
            sources[-1] = sources[-1].at[pl.ds(self.first * STEP, call.most_tokens)]
        for source, smem in zip(sources, once, strict=True):
            plgpu.copy_gmem_to_smem(source, smem, barrier)

    def pipeline(self, step: Any, out_smem: Any, out_ref: Any, carry: Any) -> Any:
        """Run step(*streams, result, carry) for all tokens; returns the last carry."""
        shape = (STEP, *self.call.channels)
        block = plgpu.BlockSpec(
            shape, lambda k: (self.first + k, *[0] * (len(shape) - 1)), transforms=tokens.transforms()
        )
        return tiles.pipeline(
            step, steps=self.steps, slots=SLOTS, in_specs=[block] * len(self.streams), init_carry=carry,
            outputs=[(out_smem, lambda k: out_ref.at[pl.ds((self.first + k) * STEP, STEP)])],
        )(*self.streams)

    def wait(self, k: Any) -> None:
        """In the first step, wait for what is read once. It is on its way together with the first tokens."""

        @pl.when(k == 0)
        def _():
            plgpu.barrier_wait(self.barrier)

    def values(self, number: int) -> jax.Array:
        """A value for each channel, at AT_ONCE tokens."""
        return tokens.of_channels(self.once[number])

    def dropouts(self, first: Any) -> tuple[Any, Any]:
        """Dropout before and after the norm, functions of the AT_ONCE tokens from the program's token `first` on."""

        def same(x):
            return x

        def drop(x):
            return jnp.where(drops, 0.0, x * (1 / (1 - self.call.how.dropout)))

        if not self.call.drops:
            return same, same
        *_, words, keys = self.once
        keys = tokens.of_tokens(keys.at[pl.ds(first, AT_ONCE)], self.call.channels)
        drops = dropped(keys, tokens.of_channels(words), self.call.how.dropout)
        return (drop, same) if self.call.how.drops_first else (same, drop)
