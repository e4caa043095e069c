"""The depthwise convolution over a few neighbouring tokens, followed by silu; it never leaves a history."""
import functools
import itertools

import jax
import jax.numpy as jnp

from pallas_kernels.ssd.gpu import short_conv as gpu
from pallas_kernels.target import target
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.silu import silu, silu_slope
from ssd4rec_jax.model.token_sums import token_sums


def short_conv(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, layout: Layout, *, reverse: bool = False
) -> jax.Array:
    """silu of the causal depthwise convolution within each history: Mamba-2's conv1d with its activation.

    x: [rows, tokens, channels]. kernel: [d_conv, channels], with the token's own tap last (torch's order). bias:
    [channels]. Returns an array of x's shape and dtype. reverse=True reads the tokens that follow instead of those
    before, which is the convolution of the reversed history with every result left at its token.
    """
    return short_convs(x, kernel, bias, layout, (reverse,))[0]


def parts_of_short_convs(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, layout: Layout, directions: tuple[bool, ...],
    widths: tuple[int, ...], *, fused: bool,
) -> tuple[tuple[tuple[jax.Array, ...], ...], jax.Array]:
    """(short_convs of the first columns of x, each cut into arrays of these widths; the other columns as they are).

    kernel, bias: in the dtype of the parameters. fused: as one kernel of a GPU, where that can serve it.
    """
    if fused and gpu.why_not_short_convs(x.dtype, x.shape[-1], kernel.shape[0], widths) is None:
        taps = jnp.concatenate([bias[None], kernel[::-1]]).astype(jnp.float32)
        how = gpu.Convolution(directions, widths, target().interpret)
        return gpu.short_convs(how, x, taps, layout.position, layout.remaining)
    x, rest = jnp.split(x, (sum(widths),), axis=-1)
    # What is cut out of a whole is a copy on a GPU, so x, the widest by far, is convolved by itself there.
    groups = (widths[:1], widths[1:]) if target().platform == 'gpu' else (widths,)
    x_parts, kernels, biases = (_cut(a.astype(x.dtype), [sum(group) for group in groups]) for a in (x, kernel, bias))
    made = [
        [_cut(conv, group) for conv in short_convs(of_group, taps, shift, layout, directions)]
        for group, of_group, taps, shift in zip(groups, x_parts, kernels, biases, strict=True)
    ]
    return tuple(tuple(itertools.chain(*parts)) for parts in zip(*made, strict=True)), rest


def _cut(a, widths):
    """The array in parts of so many columns."""
    return jnp.split(a, tuple(itertools.accumulate(widths))[:-1], axis=-1)


def short_convs(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, layout: Layout, directions: tuple[bool, ...]
) -> tuple[jax.Array, ...]:
    """short_conv of x for each value of `reverse` in directions.

    The gradients of all directions are summed before they are multiplied by the taps.
    """
    return _activated(x, kernel, bias, layout.position, layout.remaining, directions)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _activated(x, kernel, bias, position, remaining, directions):
    return tuple(
        silu(_tapped(_neighbours(x, len(kernel), remaining if reverse else position, reverse), kernel) + bias)
        for reverse in directions
    )


def _activated_fwd(*args):
    return _activated(*args), args[:-1]


def _activated_bwd(directions, residuals, gs):
    """The backward pass, which keeps only x from the forward pass.

    The gradient with respect to x is the same convolution, read from the other side. The factor that it multiplies by a
    tap gives, multiplied by x, the gradient of that tap. Both directions therefore share these factors.
    """
    x, kernel, bias, position, remaining = residuals
    # The barrier makes XLA compute the convolutions again instead of keeping them, or shifted copies, from the forward
    # pass. A GPU reads x where it was projected, among other columns; behind the barrier it would be a copy.
    at_gpu = target().platform == 'gpu'
    if at_gpu:
        kernel, bias, gs = jax.lax.optimization_barrier((kernel, bias, gs))
    else:
        x, gs = jax.lax.optimization_barrier((x, gs))
    width, of_taps, readers = len(kernel), [], []
    for reverse, g in zip(directions, gs, strict=True):
        before, after = (remaining, position) if reverse else (position, remaining)
        neighbours = _neighbours(x, width, before, reverse)
        g = g * silu_slope(_tapped(neighbours, kernel) + bias)
        of_taps.append([neighbour * g for neighbour in neighbours])
        readers.append(_neighbours(g, width, after, not reverse))
    by_tap = [sum(g) for g in zip(*readers, strict=True)]
    # A GPU reads everything at the same tokens, and so only once. Elsewhere x is multiplied once for both directions.
    products = [sum(p) for p in zip(*of_taps, strict=True)] if at_gpu else [x * g for g in by_tap]
    sums = token_sums(*products[::-1], by_tap[0])
    return _tapped(by_tap, kernel), sums[:-1].astype(kernel.dtype), sums[-1].astype(bias.dtype), None, None


_activated.defvjp(_activated_fwd, _activated_bwd)


def _tapped(neighbours, kernel):
    return sum(neighbour * tap for neighbour, tap in zip(neighbours, kernel[::-1], strict=True))


def _neighbours(x, width, reach, reverse):
    """width arrays of x's shape: x of the token 0, 1, ..., width - 1 before each token (after it, with reverse=True).

    An entry is zero where that token lies outside the history. reach: int32 [rows, tokens], the number of tokens of the
    history that lie on that side.
    """
    # One padded copy is made; its readers then read slices of it in place.
    padded = jnp.pad(x, ((0, 0), (0, width - 1) if reverse else (width - 1, 0), (0, 0)))
    starts = range(width) if reverse else range(width - 1, -1, -1)
    shifted = (padded[:, start:start + x.shape[1]] for start in starts)
    # A product with zero would let a NaN of the neighbouring history through; jnp.where does not.
    return [jnp.where((reach >= distance)[..., None], s, 0) for distance, s in enumerate(shifted)]


def token_before(x: jax.Array, distance: int, layout: Layout) -> jax.Array:
    """For each token, x [rows, tokens, channels] of the token `distance` before it in its history; zero if none."""
    return _neighbours(x, distance + 1, layout.position, reverse=False)[-1]


def token_after(x: jax.Array, distance: int, layout: Layout) -> jax.Array:
    """For each token, x [rows, tokens, channels] of the token `distance` after it in its history; zero if none."""
    return _neighbours(x, distance + 1, layout.remaining, reverse=True)[-1]


def causal_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array, layout: Layout) -> jax.Array:
    """The convolution of short_conv before silu."""
    neighbours = _neighbours(x, kernel.shape[0], layout.position, reverse=False)
    return _per_channel(bias, x) + _tapped(neighbours, [_per_channel(tap, x) for tap in kernel])


def cut_convs(x: jax.Array, kernel: jax.Array, bias: jax.Array, layout: Layout) -> list[jax.Array]:
    """The convolution of short_conv(reverse=True), before silu, where histories are cut shortly after each token.

    Entry k of the list, in x's shape, holds each token's value in a history that ends k tokens after it, for
    k = 0, 1, ..., d_conv - 1.
    """
    neighbours = _neighbours(x, kernel.shape[0], layout.remaining, reverse=True)
    taps = (
        neighbour * _per_channel(tap, x) for neighbour, tap in zip(neighbours, kernel[::-1], strict=True)
    )
    return list(itertools.accumulate(taps, initial=_per_channel(bias, x)))[1:]


def _per_channel(w, x):
    """w [channels] broadcast to x's shape.

    Its gradient sums over rows and tokens at once. The gradient of an implicit broadcast sums over tokens only where
    there is one row, and for such a sum XLA's CPU backend (JAX 0.10) calls a library that takes twenty times as long.
    """
    return jax.lax.broadcast_in_dim(w, x.shape, (x.ndim - 1,))
