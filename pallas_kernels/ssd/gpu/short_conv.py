"""The short convolution of Mamba-2 with its silu, forward and backward, each as one Mosaic GPU kernel in bfloat16.

XLA keeps arrays as large as x between the convolution, the slope of silu and the sums over tokens. These kernels read
x and the gradients once, and write once what they give, cut into the x, B and C that a scan reads. Let

    conv_d = bias + sum over k of tap_k x[k tokens before, in direction d],   p_d = g_d silu'(conv_d).

Then the gradient of x is the sum over d and k of tap_k p_d[k tokens after, in direction d], and that of tap_k the sum
over tokens of x times those p_d. A program works on TOKENS tokens and some columns, and loads a few tokens more on both
sides, its halo.
"""
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

from pallas_kernels.ssd.gpu import tiles
from pallas_kernels.ssd.gpu.tiles import over_columns, over_rows, plgpu

TOKENS = 64
COLUMNS = 64
MOST_TAPS = 5  # A halo has at least 4 tokens.
REACH = 32  # The copy engine writes at multiples of 128 bytes, which is so many of the tokens' positions.


class Convolution(NamedTuple):
    """What a call computes.

    directions: for each result, whether it reads the tokens that follow instead of those before. widths: the columns
    of the arrays into which each result is cut. interpret: run the kernels in the interpreter.
    """

    directions: tuple[bool, ...]
    widths: tuple[int, ...]
    interpret: bool = False

    @property
    def columns(self) -> int:
        """The columns of a program."""
        return math.gcd(COLUMNS, *self.widths)

    @property
    def halo(self) -> int:
        """The tokens that a program loads on each side of its own: as many as a warpgroup holds side by side."""
        return 4 * COLUMNS // self.columns

    @property
    def loaded(self) -> int:
        """The tokens that a program loads."""
        return TOKENS + 2 * self.halo

    @property
    def layout(self) -> Any:
        """How [tokens, columns] lie in registers: a token's columns in one warp, two of them in a thread.

        What is one value for each token then lies where it is needed.
        """
        of_warp = self.halo // 4
        if of_warp == 1:
            return plgpu.Layout.TILED(
                plgpu.Tiling(((4, self.columns), (2,))), warp_dims=(-3,), lane_dims=(-2,), vector_dim=-1
            )
        return plgpu.Layout.TILED(
            plgpu.Tiling(((self.halo, self.columns), (of_warp, self.columns), (2,))), warp_dims=(-5,),
            lane_dims=(-3, -2), vector_dim=-1,
        )

    def rows(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """A buffer of rows of columns, of which a slice may begin at any row.

        Without a layout of its own the compiler swizzles a buffer, and then reads a slice as if it began at a multiple
        of 8 rows, wherever it begins.
        """
        return plgpu.SMEM((*shape, self.columns), dtype, transforms=(plgpu.TilingTransform((self.columns,)),))

    def grid(self, tokens: int) -> dict[str, Any]:
        """The arguments of tiles.call for one program for each tile of `tokens` tokens."""
        return dict(grid=(tokens // TOKENS, sum(self.widths) // self.columns), grid_names=('tile', 'column'))

    def parts(self, column: jax.Array) -> Iterator[tuple[jax.Array, Any]]:
        """For each array of a result: whether a program's columns lie in it, and which of its columns they are."""
        first = 0
        for width in self.widths:
            last = first + width // self.columns
            yield (first <= column) & (column < last), pl.ds((column - first) * self.columns, self.columns)
            first = last

    def flat(self, a: jax.Array) -> jax.Array:
        """[rows, tokens, ...] -> [all tokens, ...], with zeros up to whole programs."""
        a = a.reshape(-1, *a.shape[2:])
        filled = -(-max(len(a), self.loaded) // TOKENS) * TOKENS
        return a if filled == len(a) else jnp.pad(a, [(0, filled - len(a)), *[(0, 0)] * (a.ndim - 1)])


def why_not_short_convs(x_dtype: DTypeLike, columns: int, taps: int, widths: tuple[int, ...]) -> str | None:
    """The reason why short_convs cannot serve a call with so many columns of x and taps, as a sentence, or None."""
    if obstacle := tiles.why_not('short convolution', 'x', x_dtype):
        return obstacle
    if taps > MOST_TAPS:
        return f'the kernel of the short convolution has at most {MOST_TAPS} taps, not {taps}'
    if math.gcd(16, *widths) != 16:
        return f'the kernel of the short convolution takes multiples of 16 columns, not {widths}'
    # Mosaic cuts the whole of x into the tiles that programs copy. The interpreter does not.
    tile = Convolution((), widths).columns
    if columns % tile:
        return f'the kernel of the short convolution copies {tile} columns at a time and x has {columns}'
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def short_convs(
    how: Convolution, x: jax.Array, taps: jax.Array, position: jax.Array, remaining: jax.Array
) -> tuple[tuple[tuple[jax.Array, ...], ...], jax.Array]:
    """silu of the causal depthwise convolution within each history, in each of how.directions.

    Args:
      how: what to compute.
      x: [rows, tokens, channels + rest], bfloat16; channels is the sum of how.widths, and the rest is not convolved;
        in all a multiple of how.columns.
      taps: [1 + d_conv, channels], float32: the bias, then the tap of the token itself, of the one before, and so on.
      position, remaining: int32 [rows, tokens], the tokens of a token's own history before it and after it.

    Returns (for each direction the arrays [rows, tokens, width], bfloat16; the rest of x as it is). It computes in
    float32. What was projected in one product is read here without being cut out of it, and so are its gradients.
    """
    return _convolve(how, x, taps, position, remaining)


def _convolve(how, x, taps, position, remaining):
    flat = [how.flat(a) for a in (x, position, remaining)]
    tokens = len(flat[0])

    def short_convolution(x_ref, position_ref, remaining_ref, taps_ref, *refs):
        outputs, (*scratch, out_smem, barrier) = refs[:-5], refs[-5:]
        here = _Here(how, tokens, *scratch)
        here.load(x_ref, position_ref, remaining_ref, taps_ref, barrier)
        for out, reverse in enumerate(how.directions):
            conv = here.convolution(0, TOKENS, reverse)
            out_smem.at[out][...] = (conv / (1 + jnp.exp(-conv))).astype(jnp.bfloat16)
        plgpu.commit_smem()
        for inside, columns, out, ref in here.of_results(outputs):

            @pl.when(inside)
            def _(columns=columns, out=out, ref=ref):
                plgpu.copy_smem_to_gmem(out_smem.at[out], ref.at[here.own, columns])
        plgpu.wait_smem_to_gmem(0)

    made = tiles.call(
        short_convolution,
        [jax.ShapeDtypeStruct((tokens, width), jnp.bfloat16) for _ in how.directions for width in how.widths],
        *flat, taps, **how.grid(tokens),
        scratch_types=[
            *_scratch(how, taps), plgpu.SMEM((len(how.directions), TOKENS, how.columns), jnp.bfloat16),
            plgpu.Barrier(num_arrivals=4),
        ],
        interpret=how.interpret,
    )
    made = [a[:position.size].reshape(*x.shape[:2], -1) for a in made]
    parts = tuple(tuple(made[k:k + len(how.widths)]) for k in range(0, len(made), len(how.widths)))
    return parts, x[..., sum(how.widths):]


def _convolve_gradients(how, arguments, cotangents):
    (x, taps, position, remaining), (gs, of_rest) = arguments, cotangents
    flat = [how.flat(a) for a in (x, position, remaining)]
    flat_gs = [how.flat(g) for parts in gs for g in parts]
    tokens, number = len(flat[0]), len(how.directions)

    def short_convolution_gradients(x_ref, position_ref, remaining_ref, taps_ref, *refs):
        (*g_refs, dx_ref, dtaps_ref), (*scratch, g_smem, p_smem, dx_smem, dtaps_smem, barrier) = refs[:-8], refs[-8:]
        here = _Here(how, tokens, *scratch)
        for inside, columns, out, ref in here.of_results(g_refs):

            @pl.when(inside)
            def _(columns=columns, out=out, ref=ref):
                plgpu.copy_gmem_to_smem(ref.at[here.loaded, columns], g_smem.at[out, here.into], barrier)
        here.load(x_ref, position_ref, remaining_ref, taps_ref, barrier)
        # p is needed at the program's tokens and at those from whose side the direction reads.
        for out, reverse in enumerate(how.directions):
            place = -how.halo if reverse else 0, TOKENS + how.halo
            conv, g = here.convolution(*place, reverse), here.tokens(g_smem.at[out], *place)
            sigmoid = 1 / (1 + jnp.exp(-conv))
            p_smem.at[out][...] = g * (sigmoid * (1 + conv * (1 - sigmoid)))
        plgpu.commit_smem()
        x = here.tokens(here.x_smem, 0, TOKENS)
        dx = jnp.zeros_like(x)
        for distance in range(taps.shape[0] - 1):
            readers = jnp.zeros_like(x)
            for out, reverse in enumerate(how.directions):
                first = how.halo - distance if reverse else distance
                p = here.read(p_smem.at[out, pl.ds(first, TOKENS)])
                readers += here.within(p, 0, distance, not reverse)
            dx += readers * here.tap(1 + distance, x.shape)
            if distance == 0:
                dtaps_smem.at[0][...] = jnp.sum(readers, axis=0)
            dtaps_smem.at[1 + distance][...] = jnp.sum(x * readers, axis=0)
        dx_smem[...] = dx.astype(jnp.bfloat16)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(dx_smem, dx_ref.at[here.own, here.columns])
        plgpu.copy_smem_to_gmem(dtaps_smem, dtaps_ref.at[here.tile, :, here.columns])
        plgpu.wait_smem_to_gmem(0)

    dx, dtaps = tiles.call(
        short_convolution_gradients,
        [
            jax.ShapeDtypeStruct((tokens, x.shape[-1]), jnp.bfloat16),
            jax.ShapeDtypeStruct((tokens // TOKENS, *taps.shape), jnp.float32),
        ],
        *flat, taps, *flat_gs, **how.grid(tokens),
        scratch_types=[
            *_scratch(how, taps), how.rows((number, how.loaded + 2 * how.halo), jnp.bfloat16),
            how.rows((number, TOKENS + how.halo), jnp.float32),
            plgpu.SMEM((TOKENS, how.columns), jnp.bfloat16), plgpu.SMEM((taps.shape[0], how.columns), jnp.float32),
            plgpu.Barrier(num_arrivals=4 + number),
        ],
        interpret=how.interpret,
    )
    dx = dx[:position.size].reshape(x.shape)
    return lax.dynamic_update_slice_in_dim(dx, of_rest, sum(how.widths), 2), jnp.sum(dtaps, axis=0), None, None


short_convs.defvjp(lambda how, *arguments: (_convolve(how, *arguments), arguments), _convolve_gradients)


def _scratch(how, taps):
    """The buffers of _Here: x with an empty halo at both ends, (position, remaining) from REACH on, taps."""
    reach = -(-(REACH + how.loaded + how.halo) // REACH) * REACH
    return [
        how.rows((how.loaded + 2 * how.halo,), jnp.bfloat16), plgpu.SMEM((2, reach), jnp.int32),
        plgpu.SMEM((taps.shape[0], how.columns), jnp.float32),
    ]


class _Here:
    """Where a program works, and what it reads in shared memory.

    own, loaded: its own tokens and those that it loads, among all. into: the rows of the buffers that it loads into.
    """

    def __init__(self, how: Any, tokens: Any, x_smem: Any, reach_smem: Any, taps_smem: Any) -> None:
        self.how, self.x_smem, self.reach_smem, self.taps_smem = how, x_smem, reach_smem, taps_smem
        self.tile, self.column = lax.axis_index('tile'), lax.axis_index('column')
        # What a program loads is moved where it would lie outside the array.
        start = jnp.clip(self.tile * TOKENS - how.halo, 0, tokens - how.loaded)
        self.own, self.loaded = pl.ds(self.tile * TOKENS, TOKENS), pl.ds(start, how.loaded)
        self.into = pl.ds(how.halo, how.loaded)
        self.columns = pl.ds(self.column * how.columns, how.columns)
        self.row = how.halo + self.tile * TOKENS - start  # of the program's first token in the buffers

    def of_results(self, refs: Any) -> Iterator[tuple]:
        """For each array of each result: whether it holds the program's columns, which ones, the result, its ref."""
        parts = list(self.how.parts(self.column))
        for k, ref in enumerate(refs):
            yield *parts[k % len(parts)], k // len(parts), ref

    def load(self, x_ref: Any, position_ref: Any, remaining_ref: Any, taps_ref: Any, barrier: Any) -> None:
        tiles.load(
            (x_ref.at[self.loaded, self.columns], self.x_smem.at[self.into]),
            (position_ref.at[self.loaded], self.reach_smem.at[0, pl.ds(REACH, self.how.loaded)]),
            (remaining_ref.at[self.loaded], self.reach_smem.at[1, pl.ds(REACH, self.how.loaded)]),
            (taps_ref.at[:, self.columns], self.taps_smem),
            barrier=barrier,
        )

    def read(self, ref: Any) -> Any:
        return plgpu.load(ref, layout=self.how.layout, optimized=False)

    def tokens(self, smem: Any, first: Any, number: Any) -> Any:
        """`number` tokens in float32, of which the first is `first` tokens after the program's first one."""
        return self.read(smem.at[pl.ds(self.row + first, number)]).astype(jnp.float32)

    def tap(self, number: Any, shape: Any) -> Any:
        """A row of taps at every token."""
        tap = plgpu.load(self.taps_smem.at[number], layout=self.how.layout.reduce(0), optimized=False)
        return over_columns(tap, shape)

    def within(self, a: Any, first: Any, distance: Any, reverse: Any) -> Any:
        """`a` where a token's history has at least `distance` tokens before the token or, with reverse, after it."""
        if distance == 0:
            return a
        at = self.row - self.how.halo + REACH + first
        ref = self.reach_smem.at[1 if reverse else 0, pl.ds(at, a.shape[0])]
        reach = plgpu.load(ref, layout=self.how.layout.reduce(1), optimized=False)
        # A product with zero would let a NaN of the neighbouring history through.
        return jnp.where(over_rows(reach, a.shape) >= distance, a, 0.0)

    def convolution(self, first: Any, number: Any, reverse: Any) -> Any:
        """The convolution, before silu, at `number` tokens."""
        total = self.tap(0, (number, self.how.columns))
        for distance in range(self.taps_smem.shape[0] - 1):
            x = self.tokens(self.x_smem, first + (distance if reverse else -distance), number)
            total += self.within(x, first, distance, reverse) * self.tap(1 + distance, x.shape)
        return total
