"""Mamba-2's gated RMSNorm of one or two directions and their sum, forward and backward, each as one Mosaic GPU kernel.

For a token and a direction let a = y silu(z) and n = a / sqrt(mean(a^2) + epsilon). The result is the sum over the
directions of scale * weight * n, where a direction may be read at another token, as one that reads histories from
behind is. XLA writes a, silu(z) and n of both directions to memory and reads them again in the backward pass; these
kernels read y and z and write the result, and make everything else again. A program works on TOKENS tokens; what lies
at other tokens is fetched token by token.
"""
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

from pallas_kernels.ssd.gpu import tiles
from pallas_kernels.ssd.gpu.tiles import over_rows, plgpu
from pallas_kernels.ssd.gpu.tokens import AT_ONCE, LANES, MOST_CHANNELS, flat, layout, mean_of_token, of_channels, read

TOKENS = 8


class GatedNorm(NamedTuple):
    """What a call computes.

    scales: the factor of each direction. elsewhere: whether each direction is read at another token. epsilon: added to
    the mean of squares. interpret: run the kernels in the interpreter.
    """

    scales: tuple[float, ...]
    elsewhere: tuple[bool, ...]
    epsilon: float
    interpret: bool = False

    def normalized(self, a: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(a / root of its mean square, 1 / that root) for a [tokens, channels / 64, 64]."""
        inverse = over_rows(lax.rsqrt(mean_of_token(a * a) + self.epsilon), a.shape)
        return a * inverse, inverse


def why_not_gated_norms(y_dtype: DTypeLike, channels: int) -> str | None:
    """The reason why gated_norms cannot serve a call, as a sentence, or None if it can."""
    if obstacle := tiles.why_not('gated norm', 'y', y_dtype):
        return obstacle
    if channels % (2 * LANES) or channels > MOST_CHANNELS:
        return (f'the kernel of the gated norm takes multiples of {2 * LANES} channels up to {MOST_CHANNELS}, '
                f'not {channels}')
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated_norms(
    how: GatedNorm, ys: tuple[jax.Array, ...], z: jax.Array, weight: jax.Array, other: jax.Array
) -> jax.Array:
    """sum over directions k of scale_k weight RMSNorm(y_k silu(z)), where how.elsewhere says so at the token other[t].

    Args:
      how: what to compute.
      ys: [rows, tokens, channels] for each direction, bfloat16.
      z: like each of ys.
      weight: [channels], float32.
      other: int32 [rows, tokens], the index in its row of each token's other token. Applied twice it is the identity.

    Returns an array like z. It computes in float32.
    """
    return _normalize(how, ys, z, weight, other)


def _normalize(how, ys, z, weight, other):
    flat_ys, flat_z, flat_other = [flat(y, TOKENS) for y in ys], flat(z, TOKENS), _flat_tokens(other)
    tokens, *channels = flat_z.shape
    gathers = any(how.elsewhere)

    def gated_norm(other_ref, weight_ref, z_ref, *refs):
        y_refs, (out_ref, *scratch) = refs[:len(ys)], refs[len(ys):]
        z_smem, y_smem, out_smem, weight_smem, *fetching = scratch
        fetch = _Fetch(other_ref, *fetching)
        fetch.start((weight_ref, weight_smem))
        for elsewhere in range(1 + gathers):
            fetch.rows(z_ref, z_smem.at[elsewhere], bool(elsewhere))
        for k, elsewhere in enumerate(how.elsewhere):
            fetch.rows(y_refs[k], y_smem.at[k], elsewhere)
        fetch.wait()

        def some(turn, done):
            now = pl.ds(turn * AT_ONCE, AT_ONCE)
            total = jnp.zeros((AT_ONCE, *channels), jnp.float32)
            for k, (scale, elsewhere) in enumerate(zip(how.scales, how.elsewhere, strict=True)):
                z = read(z_smem.at[int(elsewhere), now])
                total += scale * how.normalized(read(y_smem.at[k, now]) * (z / (1 + jnp.exp(-z))))[0]
            out_smem.at[now][...] = (total * of_channels(weight_smem)).astype(jnp.bfloat16)
            return done

        lax.fori_loop(0, TOKENS // AT_ONCE, some, None)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_smem, out_ref.at[fetch.own])
        plgpu.wait_smem_to_gmem(0)

    out = tiles.call(
        gated_norm, jax.ShapeDtypeStruct((tokens, *channels), jnp.bfloat16),
        flat_other, weight.reshape(channels), flat_z, *flat_ys, grid=(tokens // TOKENS,), grid_names=('tile',),
        scratch_types=[
            _rows(channels, 1 + gathers), _rows(channels, len(ys)), plgpu.SMEM((TOKENS, *channels), jnp.bfloat16),
            plgpu.SMEM(channels, jnp.float32), *_Fetch.scratch(1, (False,) + (True,) * gathers + how.elsewhere),
        ],
        interpret=how.interpret,
    )
    return out[:other.size].reshape(z.shape)


def _normalize_gradients(how, arguments, g):
    ys, z, weight, other = arguments
    flat_ys, flat_other = [flat(y, TOKENS) for y in ys], _flat_tokens(other)
    flat_z, flat_g = flat(z, TOKENS), flat(g, TOKENS)
    tokens, *channels = flat_z.shape
    gathers = any(how.elsewhere)

    def gated_norm_gradients(other_ref, weight_ref, z_ref, g_ref, *refs):
        y_refs, dy_refs = refs[:len(ys)], refs[len(ys):2 * len(ys)]
        dz_ref, dweight_ref, *scratch = refs[2 * len(ys):]
        z_smem, g_smem, y_smem, dy_smem, dz_smem, dweight_smem, weight_smem, *fetching = scratch
        fetch = _Fetch(other_ref, *fetching)
        fetch.start((weight_ref, weight_smem))
        fetch.rows(z_ref, z_smem, False)
        for elsewhere in range(1 + gathers):
            fetch.rows(g_ref, g_smem.at[elsewhere], bool(elsewhere))
        for k in range(len(ys)):
            fetch.rows(y_refs[k], y_smem.at[k], False)
        fetch.wait()
        # The other token of a token's other token is the token itself, so that g is read there as y was.
        def some(turn, dweight):
            now = pl.ds(turn * AT_ONCE, AT_ONCE)
            z, weight = read(z_smem.at[now]), of_channels(weight_smem)
            sigmoid = 1 / (1 + jnp.exp(-z))
            gate, dgate = z * sigmoid, jnp.zeros_like(z)
            for k, (scale, elsewhere) in enumerate(zip(how.scales, how.elsewhere, strict=True)):
                g, y = scale * read(g_smem.at[int(elsewhere), now]), read(y_smem.at[k, now])
                n, inverse = how.normalized(y * gate)
                dweight += jnp.sum(g * n, axis=0)
                dn = g * weight
                da = inverse * (dn - n * over_rows(mean_of_token(dn * n), n.shape))
                dy_smem.at[k, now][...] = (da * gate).astype(jnp.bfloat16)
                dgate += da * y
            dz_smem.at[now][...] = (dgate * (sigmoid * (1 + z * (1 - sigmoid)))).astype(jnp.bfloat16)
            return dweight

        nothing = plgpu.layout_cast(jnp.zeros(channels, jnp.float32), layout(3).reduce(0))
        dweight_smem[...] = lax.fori_loop(0, TOKENS // AT_ONCE, some, nothing)
        plgpu.commit_smem()
        for k in range(len(ys)):
            plgpu.copy_smem_to_gmem(dy_smem.at[k], dy_refs[k].at[fetch.own])
        plgpu.copy_smem_to_gmem(dz_smem, dz_ref.at[fetch.own])
        plgpu.copy_smem_to_gmem(dweight_smem, dweight_ref.at[fetch.tile])
        plgpu.wait_smem_to_gmem(0)

    like = jax.ShapeDtypeStruct((tokens, *channels), jnp.bfloat16)
    *made, dweight = tiles.call(
        gated_norm_gradients,
        [*[like] * (len(ys) + 1), jax.ShapeDtypeStruct((tokens // TOKENS, *channels), jnp.float32)],
        flat_other, weight.reshape(channels), flat_z, flat_g, *flat_ys, grid=(tokens // TOKENS,), grid_names=('tile',),
        scratch_types=[
            plgpu.SMEM((TOKENS, *channels), jnp.bfloat16), _rows(channels, 1 + gathers), _rows(channels, len(ys)),
            _rows(channels, len(ys)), plgpu.SMEM((TOKENS, *channels), jnp.bfloat16),
            plgpu.SMEM(channels, jnp.float32), plgpu.SMEM(channels, jnp.float32),
            *_Fetch.scratch(1, (False,) * (2 + len(ys)) + (True,) * gathers),
        ],
        interpret=how.interpret,
    )
    *dys, dz = (a[:other.size].reshape(z.shape) for a in made)
    return tuple(dys), dz, jnp.sum(dweight, axis=0).reshape(weight.shape), None


gated_norms.defvjp(lambda how, *arguments: (_normalize(how, *arguments), arguments), _normalize_gradients)


def _rows(channels, number):
    return plgpu.SMEM((number, TOKENS, *channels), jnp.bfloat16)


def _flat_tokens(other):
    """The index of each other token among all tokens."""
    rows = jnp.arange(other.shape[0], dtype=other.dtype)[:, None]
    other = (other + other.shape[1] * rows).reshape(-1)
    return jnp.pad(other, (0, -len(other) % TOKENS))


class _Fetch:
    """Copies to a program's shared memory, of the rows of its own tokens or of their other tokens."""

    def __init__(self, other_ref: Any, other_smem: Any, first: Any, barrier: Any) -> None:
        self.other_smem, self.barrier = other_smem, barrier
        self.tile = lax.axis_index('tile')
        self.own = pl.ds(self.tile * TOKENS, TOKENS)
        tiles.load((other_ref.at[self.own], other_smem), barrier=first)

    @staticmethod
    def scratch(whole: Any, elsewhere: Any) -> Any:
        """What __init__ needs, for `whole` arrays and for rows of own tokens or of others."""
        arrivals = whole + sum(TOKENS if other else 1 for other in elsewhere)
        return [plgpu.SMEM((TOKENS,), jnp.int32), plgpu.Barrier(), plgpu.Barrier(num_arrivals=arrivals)]

    def start(self, *copies: Any) -> None:
        for source, target in copies:
            plgpu.copy_gmem_to_smem(source, target, self.barrier)

    def rows(self, ref: Any, smem: Any, elsewhere: Any) -> None:
        if elsewhere:
            for k in range(TOKENS):
                self.start((ref.at[pl.ds(self.other_smem[k], 1)], smem.at[pl.ds(k, 1)]))
        else:
            self.start((ref.at[self.own], smem))

    def wait(self) -> None:
        plgpu.barrier_wait(self.barrier)
