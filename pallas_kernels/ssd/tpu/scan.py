"""ssd_scan on TPUs: one Mosaic kernel for the forward pass and one for the backward pass.

The state stays in VMEM from block to block of a row. The grid is (row, block of heads, block of tokens). The blocks of
a row follow one another on one core, from the left or from the right. Rows and blocks of heads are independent. A block
is worked through in chunks. The forward kernel keeps the state at the entry of each block for the backward kernel,
which recomputes the states at the entries of its chunks.
"""
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.ssd.tpu.chunk import (
    Chunk,
    backward_chunk,
    exit_state,
    forward_chunk,
    marked,
    nan_where,
    read_chunk,
    unless,
)
from pallas_kernels.ssd.tpu.tiling import Tiling

# (tiling, whether the scan runs from the right, whether the kernels run in the interpreter).
Static = tuple[Tiling, bool, bool]


def together(count: int) -> int:
    """How many chunks a kernel works on at a time, where a loop has `count` of them."""
    return next(n for n in (2, 3, 1) if count % n == 0)


def _order(k, count: int, reverse: bool):
    """The k-th of `count` places, from the right if reverse."""
    return count - 1 - k if reverse else k


def _tokens(place, t: Tiling) -> slice | pl.Slice:
    """The tokens of the chunk at this place of a block."""
    return pl.ds(pl.multiple_of(place * t.chunk, t.chunk), t.chunk)


class _Placed(NamedTuple):
    """A chunk, and its place in the block, from the left."""

    place: jax.Array
    chunk: Chunk


def _walk(
    step: Callable[[list[_Placed]], None], refs: Sequence[Any], count: int, t: Tiling, reverse: bool, *, leftwards: bool
) -> None:
    """Call `step` for the first `count` chunks of a block on the way, some at a time.

    The compiler moves no load before a store, and a chunk is a long chain of operations. So all chunks of a step are
    read before the step begins, and it stores what it computes at its end: then their work overlaps.

    refs: of x, dt, B, C and run.
    """
    at_once = together(count)

    def some(k, _):
        chunks = []
        for i in range(at_once):
            # From the left, chunks are counted from 0, and from the right from the last.
            place = _order(k * at_once + i, t.chunks, leftwards)
            at = _tokens(place, t)
            x, dt, B, C, run = refs
            read = x[0, at], dt[0, 0, at], B[0, 0, at], C[0, 0, at], run[0, 0, pl.ds(place, 1)]
            chunks.append(_Placed(place, read_chunk(*read, t, reverse)))
        step(chunks)

    lax.fori_loop(0, count // at_once, some, None)


def _forward_kernel(x, dt, A, B, C, run, y, *rest, t: Tiling, reverse: bool):
    *entries, h, h_marked = rest
    refs = x, dt, B, C, run

    @pl.when(pl.program_id(2) == 0)
    def _():
        h[...] = jnp.zeros_like(h)
        h_marked[...] = jnp.zeros_like(h_marked)

    for ref in entries:
        ref[0, 0, 0] = nan_where(h_marked[...], h[...])

    def step(chunks):
        outputs, state, mark = [], h[...], h_marked[...]
        for _, chunk in chunks:
            out, state, mark = forward_chunk(chunk, A[0, 0], state, mark, t, reverse)
            outputs.append(out)
        for (place, _), out in zip(chunks, outputs, strict=True):
            y[0, _tokens(place, t)] = out.astype(y.dtype)
        h[...], h_marked[...] = state, mark

    _walk(step, refs, t.chunks, t, reverse, leftwards=reverse)


def _backward_kernel(
    x, dt, A, B, C, run, entry, g, dx, ddt, dB, dC, dA, states, marks, dh, dh_marked, *, t: Tiling, reverse: bool
):
    refs = x, dt, B, C, run

    @pl.when(pl.program_id(2) == 0)
    def _():
        for ref in dh, dh_marked, dA:
            ref[...] = jnp.zeros_like(ref)

    first, mark = _order(0, t.chunks, reverse), marked(entry[0, 0, 0])
    states[first], marks[first] = unless(mark, entry[0, 0, 0]), mark

    def recompute(chunks):
        at_entry = states[chunks[0].place], marks[chunks[0].place]
        exits = [at_entry := exit_state(chunk, A[0, 0], *at_entry, t, reverse) for _, chunk in chunks]
        for (place, _), (state, mark) in zip(chunks, exits, strict=True):
            after = place + (-1 if reverse else 1)
            states[after], marks[after] = state, mark

    _walk(recompute, refs, t.chunks - 1, t, reverse, leftwards=reverse)

    def step(chunks):
        before = [(g[0, _tokens(place, t)], states[place], marks[place]) for place, _ in chunks]
        gradients, dstate, dmark = [], dh[...], dh_marked[...]
        for (_, chunk), (g_, state, mark) in zip(chunks, before, strict=True):
            gradients.append(backward_chunk(chunk, A[0, 0], state, mark, g_, dstate, dmark, t, reverse))
            dstate, dmark = gradients[-1].dh, gradients[-1].dh_marked
        for (place, _), grads in zip(chunks, gradients, strict=True):
            at = _tokens(place, t)
            dx[0, at] = grads.dx.astype(dx.dtype)
            for ref, value in ((ddt, grads.ddt), (dB, grads.dB), (dC, grads.dC)):
                ref[0, 0, at] = value.astype(ref.dtype)
            dA[0, 0] += grads.dA
        dh[...], dh_marked[...] = dstate, dmark

    _walk(step, refs, t.chunks, t, reverse, leftwards=not reverse)


class _Blocks:
    """The block specs of the kernels' operands. They walk over the blocks of a row to the right or to the left."""

    def __init__(self, t: Tiling, leftwards: bool) -> None:
        self._t = t
        self._at = functools.partial(_order, count=t.blocks, reverse=leftwards)

    def tokens(self) -> pl.BlockSpec:
        """For x, y and their gradients, [batch, length, programs * width]."""
        return pl.BlockSpec((1, self._t.block, self._t.width), lambda b, p, k: (b, self._at(k), p))

    def heads(self, times: int = 1) -> pl.BlockSpec:
        """For dt, three times beside one another, and its gradient, [batch, programs, length, times * heads]."""
        return pl.BlockSpec((1, 1, self._t.block, times * self._t.heads), lambda b, p, k: (b, p, self._at(k), 0))

    def state(self, each: int) -> pl.BlockSpec:
        """For [batch, programs / each, length, d_state].

        These are B and C, with each = the programs of a group, and their gradients, with each = 1.
        """
        shape = 1, 1, self._t.block, self._t.state
        return pl.BlockSpec(shape, lambda b, p, k: (b, lax.div(p, np.int32(each)), self._at(k), 0))

    def runs(self) -> pl.BlockSpec:
        """For the result of local_runs, [batch, blocks, chunks, tile * chunk]."""
        t = self._t
        return pl.BlockSpec((1, 1, t.chunks, t.tile * t.chunk), lambda b, p, k: (b, self._at(k), 0, 0))

    def entries(self) -> pl.BlockSpec:
        """For the states at the entries of blocks, [batch, programs, blocks, d_state, width]."""
        return pl.BlockSpec((1, 1, 1, self._t.state, self._t.width), lambda b, p, k: (b, p, self._at(k), 0, 0))

    def rates(self, times: int = 1) -> pl.BlockSpec:
        """For A, as for dt, and for its gradient, summed over a row's blocks, [batch, programs, 1, times * heads]."""
        return pl.BlockSpec((1, 1, 1, times * self._t.heads), lambda b, p, k: (b, p, 0, 0))

    def inputs(self) -> list[pl.BlockSpec]:
        """For x, dt, A, B, C and run."""
        shared = self.state(self._t.programs)
        return [self.tokens(), self.heads(3), self.rates(3), shared, shared, self.runs()]


def _call(
    kernel: Callable[..., None], name: str, static: Static, operands: Sequence[jax.Array],
    in_specs: list[pl.BlockSpec], out_specs: list[pl.BlockSpec], out_shapes: list[tuple[tuple[int, ...], Any]],
    scratch: list[Any],
) -> tuple[jax.Array, ...]:
    """The outputs of a kernel. out_shapes are pairs of a shape without the batch axis and a dtype."""
    t, reverse, interpret = static

    @jax.custom_batching.custom_vmap
    def call(*operands):
        x = operands[0]
        varying = jax.typeof(x).manual_axis_type
        outputs = [
            jax.ShapeDtypeStruct((x.shape[0], *shape), dtype, manual_axis_type=varying) for shape, dtype in out_shapes
        ]
        return tuple(pl.pallas_call(
            functools.partial(kernel, t=t, reverse=reverse),
            grid=(x.shape[0], t.groups * t.programs, t.blocks), in_specs=in_specs, out_specs=out_specs,
            out_shape=outputs, scratch_shapes=scratch, name=name,
            interpret=pltpu.InterpretParams() if interpret else False,
            compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel', 'arbitrary')),
        )(*operands))

    @call.def_vmap
    def more_rows(size, mapped, *operands):
        """Make a mapped axis more rows. As another axis of the grid it would lose the dimension semantics."""
        operands = [a if m else jnp.broadcast_to(a, (size, *a.shape)) for a, m in zip(operands, mapped, strict=True)]
        outputs = call(*(a.reshape(-1, *a.shape[2:]) for a in operands))
        return tuple(a.reshape(size, -1, *a.shape[1:]) for a in outputs), (True,) * len(outputs)

    return call(*operands)


def _thrice(a: jax.Array) -> jax.Array:
    """[..., heads] -> [..., 3 * heads], as lanes.spread takes it."""
    return jnp.concatenate([a] * 3, axis=-1)


def _forward(static: Static, x, dt, A, B, C, run, keep_entries: bool) -> tuple[jax.Array, ...]:
    """(y,), or (y, the states at the entries of blocks) if keep_entries."""
    t, reverse, _ = static
    blocks, wide = _Blocks(t, leftwards=reverse), dt.dtype
    out_specs, out_shapes = [blocks.tokens()], [(x.shape[1:], x.dtype)]
    if keep_entries:
        out_specs.append(blocks.entries())
        out_shapes.append(((t.groups * t.programs, t.blocks, t.state, t.width), wide))
    return _call(
        _forward_kernel, 'ssd_forward', static, (x, _thrice(dt), _thrice(A), B, C, run), blocks.inputs(), out_specs,
        out_shapes, [pltpu.VMEM((t.state, t.width), wide), pltpu.VMEM((1, 1), wide)],
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ssd(static: Static, x, dt, A, B, C, run):
    return _forward(static, x, dt, A, B, C, run, keep_entries=False)[0]


def _ssd_fwd(static: Static, x, dt, A, B, C, run):
    y, entries = _forward(static, x, dt, A, B, C, run, keep_entries=True)
    return y, (x, dt, A, B, C, run, entries)


def _ssd_bwd(static: Static, residuals, g):
    t, reverse, _ = static
    x, dt, A, B, C, run, entries = residuals
    blocks, wide = _Blocks(t, leftwards=not reverse), dt.dtype
    # If one program takes a whole group, its gradient of B is final. Else those of the group's programs are added.
    shared = ((t.groups * t.programs, t.length, t.state), B.dtype if t.programs == 1 else wide)
    dx, ddt, dB, dC, dA = _call(
        _backward_kernel, 'ssd_backward', static, (x, _thrice(dt), _thrice(A), B, C, run, entries, g),
        [*blocks.inputs(), blocks.entries(), blocks.tokens()],
        [blocks.tokens(), blocks.heads(), blocks.state(1), blocks.state(1), blocks.rates()],
        [(x.shape[1:], x.dtype), (dt.shape[1:], wide), shared, shared, (A.shape[1:], wide)],
        [
            pltpu.VMEM((t.chunks, t.state, t.width), wide), pltpu.VMEM((t.chunks, 1, 1), wide),
            pltpu.VMEM((t.state, t.width), wide), pltpu.VMEM((1, 1), wide),
        ],
    )
    if t.programs > 1:
        split = -1, t.groups, t.programs, t.length, t.state
        dB, dC = (jnp.sum(a.reshape(split), axis=2).astype(B.dtype) for a in (dB, dC))
    return dx, ddt, dA, dB, dC, None


_ssd.defvjp(_ssd_fwd, _ssd_bwd)


def _by_program(a: jax.Array, t: Tiling) -> jax.Array:
    """[..., heads, n] -> [..., groups * programs, heads of a program, n]. Groups are filled up with empty heads."""
    a = a.reshape(*a.shape[:-2], t.groups, t.real_heads, a.shape[-1])
    gap = t.programs * t.heads - t.real_heads
    if gap:
        a = jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, gap), (0, 0)])
    return a.reshape(*a.shape[:-3], t.groups * t.programs, t.heads, a.shape[-1])


def local_runs(run: jax.Array, t: Tiling, reverse: bool) -> jax.Array:
    """The runs of each chunk, counted in scan direction from the run that enters the chunk, which is 0.

    A chunk that no run enters counts from 1. Tokens beyond the row's end have -1.

    Args:
      run: int32 [batch, length], from segments.run_ids.
      t: the tiling.
      reverse: whether the scan runs from the right.

    Returns float32 [batch, blocks, chunks, tile * chunk], where each chunk's runs are repeated for each head of a tile,
    as the kernels read them.
    """
    batch, length = run.shape
    padded = t.blocks * t.block
    chunks = jnp.pad(run, ((0, 0), (0, padded - length)), mode='edge').reshape(batch, -1, t.chunk)
    if reverse:
        local = jnp.concatenate([chunks[:, 1:, :1], chunks[:, -1:, -1:] + 1], axis=1) - chunks
    else:
        local = chunks - jnp.concatenate([chunks[:, :1, :1] - 1, chunks[:, :-1, -1:]], axis=1)
    inside = jnp.arange(padded).reshape(-1, t.chunk) < length
    local = jnp.where(inside, local, -1).astype(jnp.float32)
    return jnp.tile(local, (1, 1, t.tile)).reshape(batch, t.blocks, t.chunks, t.tile * t.chunk)


def ssd_scan_pallas_tpu(
    x: jax.Array, dt: jax.Array, A: jax.Array, B: jax.Array, C: jax.Array, run: jax.Array, *, reverse: bool,
    chunk_size: int | None, interpret: bool,
) -> jax.Array:
    """ssd_scan without D in Mosaic TPU kernels, for calls that tiling.why_not does not refuse.

    Source: Mamba-2 (Dao and Gu 2024), section 6.

    Args:
      x, B, C: as in ssd_scan.
      dt, A: as in ssd_scan, but float32, or float64 in the interpreter.
      run: int32 [batch, length], from segments.run_ids.
      reverse: scan from the right.
      chunk_size: tokens of a block, that is, between the states that are kept. None takes the largest block that fits
        VMEM.
      interpret: run the kernels in Pallas's TPU interpreter, which works on any machine.

    Returns y, with the shape and dtype of x.
    """
    t = Tiling.of(x.shape, x.dtype, B.shape, chunk_size)
    batch, length, heads, headdim = x.shape
    fused = _by_program(x, t).reshape(batch, length, -1)
    by_head = jnp.moveaxis(_by_program(dt[..., None], t)[..., 0], 2, 1)
    # Each row has rates of its own, because vmap makes a mapped axis more rows and A may be mapped.
    rates = jnp.broadcast_to(_by_program(A[:, None], t)[:, None, :, 0], (batch, t.groups * t.programs, 1, t.heads))
    gap = [(0, 0)] * 3 + [(0, t.state - B.shape[3])]
    B, C = (jnp.moveaxis(jnp.pad(a, gap), 2, 1) for a in (B, C))
    y = _ssd((t, reverse, interpret), fused, by_head, rates, B, C, local_runs(run, t, reverse).astype(dt.dtype))
    y = y.reshape(batch, length, t.groups, t.programs * t.heads, headdim)[..., :t.real_heads, :]
    return y.reshape(x.shape)
