"""Whether the kernels around pallas_gpu's scan agree with their definitions on this machine's device, and their times.

They are the short convolution, the gated norms, the LayerNorm of a sum with dropout and the feed-forward network. The
definitions are written
with XLA's plain operations and computed in float32.
"""
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.bench.agreement import TOLERANCE, largest_errors
from pallas_kernels.bench.clock import compiled, device_seconds
from pallas_kernels.hashing import mix
from pallas_kernels.ssd.gpu.feed_forward import FeedForward, Parameters, feed_forward
from pallas_kernels.ssd.gpu.gated_norm import GatedNorm, gated_norms
from pallas_kernels.ssd.gpu.residual_norm import ResidualNorm, residual_norm
from pallas_kernels.ssd.gpu.short_conv import Convolution, short_convs

REPEATS = 5
MEAN_HISTORY = 50
VECTOR_START = 192  # floats, 768 bytes: where a state's vector of small arrays may hold a weight


class Case(NamedTuple):
    """A kernel, what it must equal, and arguments: arrays that both are differentiated by, the kernel's in bfloat16."""

    name: str
    kernel: Callable[..., Any]
    definition: Callable[..., Any]
    arrays: tuple[jax.Array, ...]


class Histories(NamedTuple):
    """Histories that fill rows: int32 [rows, tokens], the tokens of a token's history before and after it, and the
    index of the token that is as far from its history's end as this token is from its start."""

    position: jax.Array
    remaining: jax.Array
    mirror: jax.Array

    @classmethod
    def random(cls, rows: int, tokens: int, seed: int = 0) -> 'Histories':
        """Histories of MEAN_HISTORY tokens on average."""
        opens = np.random.default_rng(seed).random((rows, tokens)) < 1 / MEAN_HISTORY
        opens[:, 0] = True
        at = np.broadcast_to(np.arange(tokens), (rows, tokens))
        start = np.maximum.accumulate(np.where(opens, at, 0), axis=1)
        closes = np.concatenate([opens[:, 1:], np.ones((rows, 1), bool)], axis=1)
        end = np.minimum.accumulate(np.where(closes, at, tokens)[:, ::-1], axis=1)[:, ::-1]
        return cls(*(jnp.asarray(a, jnp.int32) for a in (at - start, end - at, start + end - at)))


def convolutions(
    x: jax.Array, taps: jax.Array, histories: Histories, directions: tuple[bool, ...]
) -> tuple[jax.Array, ...]:
    """What short_convs computes, in the dtype of x and before the results are cut."""
    made = []
    for reverse in directions:
        reach, total = histories.remaining if reverse else histories.position, jnp.zeros_like(x) + taps[0]
        for distance in range(len(taps) - 1):
            neighbour = jnp.roll(x, -distance if reverse else distance, axis=1)
            total += jnp.where((reach >= distance)[..., None], neighbour, 0) * taps[1 + distance]
        made.append(jax.nn.silu(total))
    return tuple(made)


def norms(how: GatedNorm, ys: tuple[jax.Array, ...], z: jax.Array, weight: jax.Array, other: jax.Array) -> jax.Array:
    """What gated_norms computes, in the dtype of its arguments."""
    total = jnp.zeros_like(z)
    for y, scale, elsewhere in zip(ys, how.scales, how.elsewhere, strict=True):
        a = y * jax.nn.silu(z)
        n = a / jnp.sqrt(jnp.mean(a * a, axis=-1, keepdims=True) + how.epsilon)
        total += scale * (jnp.take_along_axis(n, other[..., None], axis=1) if elsewhere else n)
    return weight * total


def dropout(x: jax.Array, probability: float, keys: jax.Array | None) -> jax.Array:
    """The dropout of x [..., channels] that the kernels draw from keys [...]; keys=None drops nothing."""
    if keys is None:
        return x
    words = mix(np.arange(1, x.shape[-1] + 1, dtype=np.uint32))
    dropped = mix(keys[..., None] ^ words) < np.uint32(round(probability * 2**32))
    return jnp.where(dropped, 0, x / (1 - probability))


def layer_norm_of_sum(
    how: ResidualNorm, a: jax.Array, u: jax.Array | None, scale: jax.Array, shift: jax.Array, keys: jax.Array | None
) -> jax.Array:
    """What residual_norm computes, in the dtype of its arguments."""
    x = dropout(a if u is None else a + u, how.dropout, keys if how.drops_first else None)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    n = centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + how.epsilon)
    return dropout(n * scale + shift, how.dropout, None if how.drops_first else keys)


def feed_forward_network(
    how: FeedForward, h: jax.Array, parameters: Parameters, keys: tuple[jax.Array, jax.Array] | None
) -> jax.Array:
    """What feed_forward computes, in the dtype of its arguments."""
    p, (inner_keys, outer_keys) = parameters, keys or (None, None)
    product = functools.partial(jnp.matmul, precision='highest')
    inner = dropout(jax.nn.gelu(product(h, p.w1) + p.b1, approximate=False), how.dropout, inner_keys)
    norm = ResidualNorm(how.dropout, epsilon=how.epsilon)
    return layer_norm_of_sum(norm, product(inner, p.w2) + p.b2, h, p.scale, p.shift, outer_keys)


def convolution_case(rows: int, tokens: int, widths: tuple[int, ...], directions: tuple[bool, ...]) -> Case:
    """The short convolution with random numbers."""
    rng, how = np.random.default_rng(1), Convolution(directions, widths)
    histories = Histories.random(rows, tokens)

    def kernel(x: jax.Array, taps: jax.Array) -> tuple[jax.Array, ...]:
        parts, _ = short_convs(how, x, taps, histories.position, histories.remaining)
        return tuple(jnp.concatenate(of_direction, axis=-1) for of_direction in parts)

    return Case(
        f'short_conv {rows}x{tokens}x{widths}, reverse {directions}', kernel,
        lambda x, taps: convolutions(x, taps, histories, directions),
        (_normal(rng, rows, tokens, sum(widths)), jnp.asarray(rng.normal(size=(5, sum(widths))), jnp.float32)),
    )


def norm_case(rows: int, tokens: int, channels: int, elsewhere: tuple[bool, ...]) -> Case:
    """The gated norms with random numbers, whose weight is a part of a longer vector, as in a state on a GPU."""
    rng, histories = np.random.default_rng(2), Histories.random(rows, tokens)
    how = GatedNorm((1.0, 0.1)[:len(elsewhere)], elsewhere, 1e-5)

    def with_weight(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda vector, z, *ys: f(how, ys, z, vector[VECTOR_START:VECTOR_START + channels], histories.mirror)

    return Case(
        f'gated_norm {rows}x{tokens}x{channels}, mirrored {elsewhere}', with_weight(gated_norms), with_weight(norms),
        (
            jnp.asarray(rng.normal(size=VECTOR_START + channels), jnp.float32),
            *(_normal(rng, rows, tokens, channels) for _ in range(1 + len(elsewhere))),
        ),
    )


def residual_case(rows: int, tokens: int, channels: int, with_u: bool, how: ResidualNorm) -> Case:
    """The LayerNorm of a sum with random numbers; scale and shift are parts of a longer vector."""
    rng = np.random.default_rng(4)
    keys = jnp.asarray(rng.integers(0, 2**32, size=(rows, tokens), dtype=np.uint32))
    scale, shift = (slice(first, first + channels) for first in (VECTOR_START, VECTOR_START + channels))

    def of(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda vector, a, u=None: f(how, a, u, vector[scale], vector[shift], keys)

    return Case(
        f'residual_norm {rows}x{tokens}x{channels}, {1 + with_u} summands, drops first {how.drops_first}',
        of(residual_norm), of(layer_norm_of_sum),
        (
            jnp.asarray(rng.normal(size=VECTOR_START + 2 * channels), jnp.float32),
            *(_normal(rng, rows, tokens, channels) for _ in range(1 + with_u)),
        ),
    )


def _normal(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.bfloat16)


def feed_forward_case(rows: int, tokens: int, channels: int, how: FeedForward) -> Case:
    """The feed-forward network with random numbers, and weights that bfloat16 holds."""
    rng = np.random.default_rng(5)
    keys = tuple(jnp.asarray(rng.integers(0, 2**32, size=(rows, tokens), dtype=np.uint32)) for _ in range(2))
    w1, w2 = (
        (_normal(rng, *shape) / shape[0] ** 0.5).astype(jnp.float32)
        for shape in ((channels, 4 * channels), (4 * channels, channels))
    )
    b1, b2, scale, shift = (jnp.asarray(rng.normal(size=n), jnp.float32) for n in (4 * channels, *[channels] * 3))

    def of(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda h, *parameters: f(how, h, Parameters(*parameters), keys if how.dropout else None)

    return Case(
        f'feed_forward {rows}x{tokens}x{channels}, dropout {how.dropout}', of(feed_forward), of(feed_forward_network),
        (_normal(rng, rows, tokens, channels), w1, b1, w2, b2, scale, shift),
    )


def cases() -> Iterator[Case]:
    """The gated norms, which `auto` takes, first; the residual norm and the feed-forward network; the convolution, from
    16 columns to KuaiRand's."""
    yield norm_case(2, 96, 128, (False, True))
    yield norm_case(1, 1024, 512, (False,))
    yield norm_case(7, 7488, 512, (False, True))
    yield residual_case(3, 100, 64, True, ResidualNorm(0.3))
    yield residual_case(7, 7488, 256, False, ResidualNorm(0.3, drops_first=True))
    yield residual_case(7, 7488, 256, True, ResidualNorm(0.3))
    yield feed_forward_case(1, 100, 64, FeedForward())
    yield feed_forward_case(3, 100, 128, FeedForward(0.3))
    yield feed_forward_case(7, 7488, 256, FeedForward(0.3))
    yield convolution_case(1, 98, (16,), (False,))
    yield convolution_case(1, 98, (64,), (False,))
    yield convolution_case(2, 300, (512, 64), (True,))
    yield convolution_case(7, 7488, (512, 64, 64), (False, True))


def compare(chosen: Iterator[Case] | None = None) -> dict[str, Any]:
    """{'cases': [...]}: the errors of each case as in `agreement`, and the seconds of the kernel and the definition."""
    found = []
    for case in chosen or cases():
        record: dict[str, Any] = {'name': case.name}
        try:
            kernel, arrays = _both(case.kernel), case.arrays
            definition = _both(case.definition)
            wide = tuple(a.astype(jnp.float32) for a in arrays)
            errors = largest_errors(functools.partial(kernel, *arrays), definition(*wide))
            calls, _ = compiled({'kernel': (kernel, arrays), 'xla': (definition, arrays)})
            record |= {
                'errors': errors, 'agrees': max(errors.values()) <= TOLERANCE,
                'seconds': device_seconds(calls, REPEATS),
            }
        except Exception as error:  # Whatever a compiler or driver raises is what this looks for.
            record |= {'error': ' '.join(str(error).split())[:500], 'agrees': False}
        found.append(record)
    return {'cases': found}


def _both(f: Callable[..., Any]) -> Callable[..., dict[str, jax.Array]]:
    """The jitted function of f's arguments that gives its values and gradients by name, with random cotangents."""

    def values_and_gradients(*arrays: jax.Array) -> dict[str, jax.Array]:
        values, pull = jax.vjp(f, *arrays)
        leaves, tree = jax.tree.flatten(values)
        keys = jax.random.split(jax.random.key(3), len(leaves))
        gs = [jax.random.normal(k, a.shape, jnp.bfloat16).astype(a.dtype) for k, a in zip(keys, leaves, strict=True)]
        named = [('y', leaves), ('gradient', pull(jax.tree.unflatten(tree, gs)))]
        return {f'{name} {k}': a for name, of_name in named for k, a in enumerate(of_name)}

    return jax.jit(values_and_gradients)
