"""A position-wise feed-forward network with its residual connection and LayerNorm, forward and backward.

    s = W2 drop(gelu(W1 h + b1)) + b2 + h;    n = (s - mean(s)) / sqrt(var(s) + epsilon);    out = drop(n scale + shift)

XLA writes what lies between the two products, four times as wide as h, and reads it again. Here each direction is one
Mosaic GPU kernel, and only the backward kernel writes it: it makes the hidden channels again, and writes them and their
gradients, of which the gradients of the weights are made. A program works on the tokens of two workers (workers.py),
whose h is in shared memory, and walks over the hidden channels, whose weights are fetched for both. The forward kernel
writes out, and n where gradients follow.
"""
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

from pallas_kernels.hashing import channel_words
from pallas_kernels.ssd.gpu import tiles, workers
from pallas_kernels.ssd.gpu.drops import dropped
from pallas_kernels.ssd.gpu.tiles import over_columns, over_rows, plgpu
from pallas_kernels.ssd.gpu.workers import SLOTS, WORKERS, Stream

TOKENS = 64  # The tokens of a worker: the rows of one wgmma.
VALUES_CHUNK, GRADIENTS_CHUNK = 64, 32  # Hidden channels in a step; the backward kernel has shared memory for fewer.
PIECE = 64  # The columns of out, or of its gradient, that are worked on at a time.
MOST_CHANNELS = 256  # More do not fit into the registers of a warpgroup.


def transposed_matmul(u: jax.Array, g: jax.Array) -> jax.Array:
    """u^T g [in, out] for u [n, in] and g [n, out], in float32."""
    return jnp.einsum('ni,no->io', u, g, preferred_element_type=jnp.float32)


class FeedForward(NamedTuple):
    """What a call computes.

    dropout: the probability with which an element is dropped. epsilon: added to the variance. transposed_matmul: makes
    the gradients of the weights from bfloat16 arrays. interpret: run the kernels in the interpreter.
    """

    dropout: float = 0.0
    epsilon: float = 1e-12
    transposed_matmul: Callable[[jax.Array, jax.Array], jax.Array] = transposed_matmul
    interpret: bool = False


class Parameters(NamedTuple):
    """w1 [D, 4 D], b1 [4 D], w2 [4 D, D], b2 [D], and the LayerNorm's scale and shift [D], all float32."""

    w1: jax.Array
    b1: jax.Array
    w2: jax.Array
    b2: jax.Array
    scale: jax.Array
    shift: jax.Array


def why_not_feed_forward(h_dtype: DTypeLike, channels: int, hidden: int) -> str | None:
    """The reason why feed_forward cannot serve a call, as a sentence, or None if it can."""
    if obstacle := tiles.why_not('feed-forward network', 'its input', h_dtype):
        return obstacle
    if channels % PIECE or channels > MOST_CHANNELS:
        return (f'the kernel of the feed-forward network takes multiples of {PIECE} channels up to {MOST_CHANNELS}, '
                f'not {channels}')
    if hidden != 4 * channels:
        return (f'the kernel of the feed-forward network takes four times as many hidden channels as channels, '
                f'not {hidden} for {channels}')
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def feed_forward(
    how: FeedForward, h: jax.Array, parameters: Parameters, keys: tuple[jax.Array, jax.Array] | None
) -> jax.Array:
    """dropout(LayerNorm(W2 dropout(gelu(W1 h + b1)) + b2 + h)), with the exact gelu.

    Args:
      how: what to compute.
      h: [rows, tokens, D], bfloat16.
      parameters: the products take the weights in bfloat16.
      keys: uint32 [rows, tokens] for the inner and for the outer dropout, from which a token's draws are made
        (drops.py), or None for no dropout.

    Returns an array like h. It computes in float32. A token that is not finite gives NaN in its own elements alone, and
    in the gradients of the parameters.
    """
    return _unflat(_feed_forward(how, h, parameters, keys, keep=False)[0], h)


def _feed_forward(how, h, parameters, keys, *, keep):
    """[out], and with `keep` also n and 1 / the standard deviation of each token, of all tokens one after another."""
    call = _Call(how, h, parameters, keys, VALUES_CHUNK)
    wide = call.wide(call.channels)
    outs = [wide, *([wide, jax.ShapeDtypeStruct((len(call.h),), jnp.float32)] if keep else [])]

    def kernel(h_ref, w1_ref, w2_ref, b1_ref, b2_ref, scale_ref, shift_ref, *refs):
        *refs, buffers, loaded, of_w1, of_w2 = refs
        draws, (out_ref, *kept_refs) = refs[:-len(outs)], refs[-len(outs):]
        first, second = Stream(w1_ref, call.chunk, of_w1), Stream(w2_ref, call.chunk, of_w2)

        def work(worker):
            here = _Here(call, worker, draws)
            h_smem, _ = workers.own(worker, buffers)
            tiles.load((h_ref.at[here.tokens], h_smem), barrier=loaded.at[worker])

            def step(total, k):
                now = first.slice(k)
                h_smem, inner_smem = workers.own(worker, buffers)
                bias = here.channels(b1_ref, now)
                a = tiles.product(h_smem, first.wait(k).transpose((1, 0))) + bias
                first.leave(k)
                phi, _ = _normal(a)
                inner_smem[...] = (a * (phi * here.mask(0, now, here.factor))).astype(jnp.bfloat16)
                plgpu.commit_smem()
                plgpu.wgmma(total, inner_smem, second.wait(k))
                plgpu.wgmma_wait(0)
                second.leave(k)

            y = call.summed(step)
            n, inverse = _normalized(how, [
                y[:, its.start:its.start + PIECE] + here.channels(b2_ref, its) + tiles.tile(h_smem.at[:, its])
                for its in call.pieces
            ])

            def write(pieces, ref):
                for its, piece in zip(call.pieces, pieces, strict=True):
                    h_smem.at[:, its][...] = piece.astype(jnp.bfloat16)
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(h_smem, ref.at[here.tokens])
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)

            if keep:
                n_ref, inverse_ref = kept_refs
                inverse_ref.at[here.tokens][...] = inverse
                write(n, n_ref)
            write((
                (piece * here.channels(scale_ref, its) + here.channels(shift_ref, its)) * here.mask(1, its, here.factor)
                for its, piece in zip(call.pieces, n, strict=True)
            ), out_ref)
            plgpu.wait_smem_to_gmem(0)

        workers.run(work, (first, second))

    return call.run(
        kernel, outs, parameters.b1, parameters.b2, parameters.scale, parameters.shift,
        scratch=[call.buffers(call.channels, call.chunk), plgpu.Barrier(num_barriers=WORKERS)],
    )


def _feed_forward_gradients(how, residuals, g):
    h, parameters, keys, n, inverse = residuals
    call = _Call(how, h, parameters, keys, GRADIENTS_CHUNK)
    # The sums over a worker's tokens for the gradients of b1, b2, scale and shift, beside one another.
    widths = call.hidden, call.channels, call.channels, call.channels
    starts = [sum(widths[:k]) for k in range(len(widths))]
    sums = jax.ShapeDtypeStruct((call.tiles, sum(widths)), jnp.float32)
    outs = [*[call.wide(call.channels)] * 2, *[call.wide(call.hidden)] * 2, sums]

    def kernel(h_ref, w1_ref, w2_ref, b1_ref, scale_ref, g_ref, n_ref, inverse_ref, *refs):
        *refs, buffers, loaded, h_loaded, of_w1, of_w2 = refs
        draws, refs = refs[:-len(outs)], refs[-len(outs):]
        dh_ref, ds_ref, inner_ref, da_ref, sums_ref = refs
        first, second = Stream(w1_ref, call.chunk, of_w1), Stream(w2_ref, call.chunk, of_w2)

        def work(worker):
            here = _Here(call, worker, draws)

            def add_up(kind, its, terms):
                sums_ref.at[here.tile, pl.ds(starts[kind] + its.start, its.size)][...] = jnp.sum(terms, axis=0)

            h_smem, ds_smem, *_ = workers.own(worker, buffers)
            n_smem, g_smem = h_smem, ds_smem  # They are read before h and the gradient of s lie there.
            tiles.load(
                (n_ref.at[here.tokens], n_smem), (g_ref.at[here.tokens], g_smem), barrier=loaded.at[worker]
            )
            mean = along = 0.0
            for its in call.pieces:
                g = tiles.tile(g_smem.at[:, its]) * here.mask(1, its, 1.0)
                g_smem.at[:, its][...] = g.astype(jnp.bfloat16)
                dn = g * here.channels(scale_ref, its)
                mean += jnp.sum(dn, axis=1) * (1 / call.channels)
                along += jnp.sum(dn * tiles.tile(n_smem.at[:, its]), axis=1) * (1 / call.channels)
            for its in call.pieces:
                g, n = tiles.by_channel(g_smem.at[:, its]), tiles.by_channel(n_smem.at[:, its])
                add_up(2, its, g * n * here.factor)
                add_up(3, its, g * here.factor)
            inverse = tiles.vector(inverse_ref.at[here.tokens], 1) * here.factor
            for its in call.pieces:
                dn = tiles.tile(g_smem.at[:, its]) * here.channels(scale_ref, its)
                along_n = over_rows(along, dn.shape) * tiles.tile(n_smem.at[:, its])
                ds = over_rows(inverse, dn.shape) * (dn - over_rows(mean, dn.shape) - along_n)
                ds_smem.at[:, its][...] = ds.astype(jnp.bfloat16)
            plgpu.commit_smem()
            plgpu.copy_gmem_to_smem(h_ref.at[here.tokens], h_smem, h_loaded.at[worker])
            plgpu.copy_smem_to_gmem(ds_smem, ds_ref.at[here.tokens])
            for its in call.pieces:
                add_up(1, its, tiles.by_channel(ds_smem.at[:, its]))
            plgpu.barrier_wait(h_loaded.at[worker])

            def step(total, k):
                now = first.slice(k)
                h_smem, ds_smem, inner_smem, da_smem = workers.own(worker, buffers)
                bias = here.channels(b1_ref, now)
                w1, w2 = first.wait(k), second.wait(k)
                a, dinner = _products((h_smem, w1.transpose((1, 0))), (ds_smem, w2.transpose((1, 0))))
                second.leave(k)
                a += bias
                phi, slope = _normal(a)
                mask = here.mask(0, now, here.factor)
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                inner_smem[...] = (a * (phi * mask)).astype(jnp.bfloat16)
                da_smem[...] = (dinner * mask * (phi + a * slope)).astype(jnp.bfloat16)
                plgpu.commit_smem()
                plgpu.wgmma(total, da_smem, w1)
                plgpu.copy_smem_to_gmem(inner_smem, inner_ref.at[here.tokens, now])
                plgpu.copy_smem_to_gmem(da_smem, da_ref.at[here.tokens, now])
                add_up(0, now, tiles.by_channel(da_smem))
                plgpu.wgmma_wait(0)
                first.leave(k)

            dh = call.summed(step)
            for its in call.pieces:
                piece = dh[:, its.start:its.start + PIECE] + tiles.tile(ds_smem.at[:, its])
                h_smem.at[:, its][...] = piece.astype(jnp.bfloat16)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(h_smem, dh_ref.at[here.tokens])
            plgpu.wait_smem_to_gmem(0)

        workers.run(work, (second, first))  # W2's buffer is free first.

    dh, ds, inner, da, sums = call.run(
        kernel, outs, parameters.b1, parameters.scale, _flat(g), n, inverse,
        scratch=[
            call.buffers(call.channels, call.channels, call.chunk, call.chunk),
            plgpu.Barrier(num_arrivals=2, num_barriers=WORKERS), plgpu.Barrier(num_barriers=WORKERS),
        ],
    )
    db1, db2, dscale, dshift = jnp.split(jnp.sum(sums, axis=0), starts[1:])
    dw1, dw2 = how.transposed_matmul(call.h, da), how.transposed_matmul(inner, ds)
    return _unflat(dh, h), Parameters(dw1, db1, dw2, db2, dscale, dshift), None


def _forward(how, h, parameters, keys):
    out, *kept = _feed_forward(how, h, parameters, keys, keep=True)
    return _unflat(out, h), (h, parameters, keys, *kept)


feed_forward.defvjp(_forward, _feed_forward_gradients)


def _flat(a):
    """[rows, tokens, ...] -> [all tokens, ...], with zeros up to whole workers."""
    a = a.reshape(-1, *a.shape[2:])
    gap = -len(a) % TOKENS
    return jnp.pad(a, [(0, gap), *[(0, 0)] * (a.ndim - 1)]) if gap else a


def _unflat(a, like):
    """What was made of the tokens of `like`, in its shape."""
    return a[:like.shape[0] * like.shape[1]].reshape(like.shape)


def _normal(x):
    """(Phi(x), its slope), where Phi is the standard normal distribution function, with an error below 4e-7.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26, for erf. Mosaic GPU has no erf in JAX
    0.11, and this one shares its exponential with the slope.
    """
    exponential = jnp.exp(-0.5 * x * x)
    t = 1 / (1 + 0.3275911 * math.sqrt(0.5) * jnp.abs(x))
    series = 0.0
    for coefficient in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = series * t + 0.5 * coefficient
    tail = series * t * exponential
    return jnp.where(x < 0, tail, 1 - tail), exponential * (1 / math.sqrt(2 * math.pi))


def _normalized(how, pieces):
    """(the pieces of each token's channels with mean 0 and variance 1, 1 / the standard deviation of each token)."""

    def mean(values):
        return sum(jnp.sum(a, axis=1) for a in values) * (1 / (PIECE * len(pieces)))

    average = mean(pieces)
    centred = [a - over_rows(average, a.shape) for a in pieces]
    inverse = lax.rsqrt(mean([a * a for a in centred]) + how.epsilon)
    return [a * over_rows(inverse, a.shape) for a in centred], inverse


def _products(*pairs):
    """a @ b for each pair (a, b) of bfloat16 refs in shared memory, in float32 in registers."""

    def multiply(*totals):
        for total, (a, b) in zip(totals, pairs, strict=True):
            plgpu.wgmma(total, a, b)
        return tuple(total[...] for total in totals)

    return pl.run_scoped(multiply, *(plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32) for a, b in pairs))


class _Call:
    """What the kernels of a call share.

    chunk: the hidden channels of a step. h: that of all tokens, [tokens, D]. weights: W1 transposed and W2, both
    bfloat16 [4 D, D]. draws: the words of the channels and the two keys of each token, or nothing.
    """

    def __init__(self, how, h, parameters, keys, chunk):
        self.how, self.chunk, self.h = how, chunk, _flat(h)
        self.hidden, self.channels = parameters.w2.shape
        self.steps, self.tiles = self.hidden // chunk, len(self.h) // TOKENS
        self.weights = parameters.w1.T.astype(jnp.bfloat16), parameters.w2.astype(jnp.bfloat16)
        self.draws = []
        if keys is not None and how.dropout > 0:
            self.draws = [jnp.asarray(channel_words(self.hidden)), *(_flat(a) for a in keys)]
        self.pieces = [pl.ds(first, PIECE) for first in range(0, self.channels, PIECE)]

    def wide(self, columns: int) -> jax.ShapeDtypeStruct:
        """The type of a bfloat16 value for each token and column."""
        return jax.ShapeDtypeStruct((len(self.h), columns), jnp.bfloat16)

    def shared(self, *shape: int) -> Any:
        """A bfloat16 buffer in shared memory that wgmma and TMA can read."""
        transforms = plgpu.TilingTransform((8, self.chunk)), plgpu.SwizzleTransform(2 * self.chunk)
        return plgpu.SMEM(shape, jnp.bfloat16, transforms=transforms)

    def buffers(self, *columns: int) -> list[Any]:
        """For each of these numbers of columns, a buffer of them for the tokens of every worker."""
        return [self.shared(WORKERS, TOKENS, n) for n in columns]

    def run(self, kernel: Callable[..., None], outs: Any, *operands: jax.Array, scratch: Sequence[Any]) -> Any:
        """Call the kernel with refs of h, weights, operands, draws and results, `scratch`, and two streams' buffers."""
        stream = Stream.scratch(self.shared(SLOTS, self.chunk, self.channels))
        return tiles.call(
            kernel, outs, self.h, *self.weights, *operands, *self.draws, grid=(-(-self.tiles // WORKERS),),
            grid_names=('program',), scratch_types=[*scratch, stream, stream], warpgroups=WORKERS + 1,
            interpret=self.how.interpret,
        )

    def summed(self, step: Callable[[Any, Any], None]) -> jax.Array:
        """[TOKENS, D] float32 in registers, the sum of what step(total, k) adds to the ref in every step k."""

        def of_steps(total):
            def turn(k, done):
                step(total, k)
                return done

            lax.fori_loop(0, self.steps, turn, None)
            return total[...]

        return pl.run_scoped(of_steps, plgpu.ACC((TOKENS, self.channels), jnp.float32))


class _Here:
    """A worker's tokens, and what is drawn for them.

    Where the last program has more workers than there are tokens, the last worker does the same as the one before it.
    """

    def __init__(self, call, worker, draws):
        self.draws = draws
        self.tile = jnp.minimum(lax.axis_index('program') * WORKERS + worker, call.tiles - 1)
        self.tokens = pl.ds(self.tile * TOKENS, TOKENS)
        self.dropout = call.how.dropout
        self.factor = 1 / (1 - self.dropout) if draws else 1.0

    def channels(self, ref: Any, its: Any) -> jax.Array:
        """Load a value for each of these channels, and give it to all tokens."""
        return over_columns(tiles.vector(ref.at[its], 0), (TOKENS, its.size))

    def mask(self, kind: int, its: Any, kept: float) -> jax.Array | float:
        """`kept` where the inner (kind 0) or the outer (1) dropout keeps these channels of a token, and 0 elsewhere."""
        if not self.draws:
            return kept
        words, *keys = self.draws
        key = over_rows(tiles.vector(keys[kind].at[self.tokens], 1), (TOKENS, its.size))
        return jnp.where(dropped(key, self.channels(words, its), self.dropout), 0.0, kept)
