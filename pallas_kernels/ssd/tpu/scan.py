"""ssd_scan on TPUs: one Mosaic kernel forward and one backward, whose state stays in VMEM from block to block of a row.

The grid is (row, head block, block of tokens). Blocks of a row follow one another on one core, from the left or from
the right; rows and head blocks are independent. A block is worked through in chunks. The forward kernel keeps the state at
each block's entry for the backward one, which recomputes those at its chunks' entries.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.ssd.tpu.chunk import backward_chunk, exit_state, forward_chunk, read_chunk
from pallas_kernels.ssd.tpu.tiling import Tiling


def _order(k, count: int, reverse: bool):
    return count - 1 - k if reverse else k


def _chunk_of(refs, k, t: Tiling, reverse: bool):
    """Chunk k of a block's refs (x, dt, B, C, run)."""
    at = pl.ds(pl.multiple_of(k * t.chunk, t.chunk), t.chunk)
    x, dt, B, C, run = refs
    return read_chunk(x[0, at], dt[0, 0, at], B[0, 0, at], C[0, 0, at], run[0, 0, pl.ds(k, 1)], t, reverse)


def _forward_kernel(x, dt, A, B, C, run, y, *rest, t: Tiling, reverse: bool):
    *entries, h = rest
    refs = x, dt, B, C, run

    @pl.when(pl.program_id(2) == 0)
    def _():
        h[...] = jnp.zeros_like(h)

    for ref in entries:
        ref[0, 0, 0] = h[...]

    def step(k, _):
        k = _order(k, t.chunks, reverse)
        out, state = forward_chunk(_chunk_of(refs, k, t, reverse), A[0, 0], h[...], t, reverse)
        y[0, pl.ds(pl.multiple_of(k * t.chunk, t.chunk), t.chunk)] = out.astype(y.dtype)
        h[...] = state

    lax.fori_loop(0, t.chunks, step, None)


def _backward_kernel(x, dt, A, B, C, run, entry, g, dx, ddt, dB, dC, dA, states, dh, *, t: Tiling, reverse: bool):
    refs = x, dt, B, C, run

    @pl.when(pl.program_id(2) == 0)
    def _():
        dh[...] = jnp.zeros_like(dh)
        dA[...] = jnp.zeros_like(dA)

    states[_order(0, t.chunks, reverse)] = entry[0, 0, 0]

    def recompute(k, _):
        here, after = _order(k, t.chunks, reverse), _order(k + 1, t.chunks, reverse)
        states[after] = exit_state(_chunk_of(refs, here, t, reverse), A[0, 0], states[here], t, reverse)

    lax.fori_loop(0, t.chunks - 1, recompute, None)

    def step(k, _):
        k = _order(k, t.chunks, not reverse)
        at = pl.ds(pl.multiple_of(k * t.chunk, t.chunk), t.chunk)
        grads = backward_chunk(_chunk_of(refs, k, t, reverse), A[0, 0], states[k], g[0, at], dh[...], t, reverse)
        dx[0, at] = grads.dx.astype(dx.dtype)
        for ref, value in ((ddt, grads.ddt), (dB, grads.dB), (dC, grads.dC)):
            ref[0, 0, at] = value.astype(ref.dtype)
        dA[0, 0] += grads.dA
        dh[...] = grads.dh

    lax.fori_loop(0, t.chunks, step, None)


class _Blocks:
    """Block specs of the kernels' operands, walking over the blocks of a row to the right or to the left."""

    def __init__(self, t: Tiling, leftwards: bool):
        self._t = t
        self._at = functools.partial(_order, count=t.blocks, reverse=leftwards)

    def tokens(self) -> pl.BlockSpec:
        """x, y and their gradients [batch, length, programs * width]."""
        return pl.BlockSpec((1, self._t.block, self._t.width), lambda b, p, k: (b, self._at(k), p))

    def heads(self) -> pl.BlockSpec:
        """dt and its gradient [batch, programs, length, heads]."""
        return pl.BlockSpec((1, 1, self._t.block, self._t.heads), lambda b, p, k: (b, p, self._at(k), 0))

    def state(self, each: int) -> pl.BlockSpec:
        """[batch, programs / each, length, state]: B and C (each = programs a group), their gradients (1)."""
        return pl.BlockSpec((1, 1, self._t.block, self._t.state), lambda b, p, k: (b, lax.div(p, np.int32(each)), self._at(k), 0))

    def runs(self) -> pl.BlockSpec:
        """[batch, blocks, chunks, tile * chunk]."""
        t = self._t
        return pl.BlockSpec((1, 1, t.chunks, t.tile * t.chunk), lambda b, p, k: (b, self._at(k), 0, 0))

    def entries(self) -> pl.BlockSpec:
        """[batch, programs, blocks, state, width]."""
        return pl.BlockSpec((1, 1, 1, self._t.state, self._t.width), lambda b, p, k: (b, p, self._at(k), 0, 0))

    def rates(self) -> pl.BlockSpec:
        """A and its gradient, summed over a row's blocks: [batch, programs, 1, heads]."""
        return pl.BlockSpec((1, 1, 1, self._t.heads), lambda b, p, k: (b, p, 0, 0))

    def inputs(self) -> list[pl.BlockSpec]:
        """x, dt, A, B, C, run."""
        shared = self.state(self._t.programs)
        return [self.tokens(), self.heads(), self.rates(), shared, shared, self.runs()]


def _call(kernel, t: Tiling, reverse: bool, interpret: bool, name: str, operands, in_specs, out_specs, out_shapes, scratch):
    """The kernel's outputs; out_shapes are (shape without the batch axis, dtype)."""

    @jax.custom_batching.custom_vmap
    def call(*operands):
        x = operands[0]
        varying = jax.typeof(x).manual_axis_type
        outputs = [
            jax.ShapeDtypeStruct((x.shape[0], *shape), dtype, manual_axis_type=varying) for shape, dtype in out_shapes
        ]
        return tuple(pl.pallas_call(
            functools.partial(kernel, t=t, reverse=reverse),
            grid=(x.shape[0], t.groups * t.programs, t.blocks), in_specs=in_specs, out_specs=out_specs, out_shape=outputs,
            scratch_shapes=scratch, name=name, interpret=pltpu.InterpretParams() if interpret else False,
            compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel', 'arbitrary')),
        )(*operands))

    @call.def_vmap
    def more_rows(size, mapped, *operands):
        """A mapped axis is more rows, and not another axis of the grid."""
        operands = [a if m else jnp.broadcast_to(a, (size, *a.shape)) for a, m in zip(operands, mapped)]
        outputs = call(*(a.reshape(-1, *a.shape[2:]) for a in operands))
        return tuple(a.reshape(size, -1, *a.shape[1:]) for a in outputs), (True,) * len(outputs)

    return call(*operands)


def _forward(static, x, dt, A, B, C, run, keep_entries: bool):
    t, reverse, interpret = static
    blocks, wide = _Blocks(t, leftwards=reverse), dt.dtype
    out_specs, out_shapes = [blocks.tokens()], [(x.shape[1:], x.dtype)]
    if keep_entries:
        out_specs.append(blocks.entries())
        out_shapes.append(((t.groups * t.programs, t.blocks, t.state, t.width), wide))
    return _call(
        _forward_kernel, t, reverse, interpret, 'ssd_forward', (x, dt, A, B, C, run), blocks.inputs(), out_specs, out_shapes,
        [pltpu.VMEM((t.state, t.width), wide)],
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ssd(static, x, dt, A, B, C, run):
    return _forward(static, x, dt, A, B, C, run, keep_entries=False)[0]


def _ssd_fwd(static, x, dt, A, B, C, run):
    y, entries = _forward(static, x, dt, A, B, C, run, keep_entries=True)
    return y, (x, dt, A, B, C, run, entries)


def _ssd_bwd(static, residuals, g):
    t, reverse, interpret = static
    x, dt, A, B, C, run, entries = residuals
    blocks, wide = _Blocks(t, leftwards=not reverse), dt.dtype
    # A program's share of B's gradient is final where a group is one program, else summed over the group's.
    shared = ((t.groups * t.programs, t.length, t.state), B.dtype if t.programs == 1 else wide)
    dx, ddt, dB, dC, dA = _call(
        _backward_kernel, t, reverse, interpret, 'ssd_backward', (x, dt, A, B, C, run, entries, g),
        [*blocks.inputs(), blocks.entries(), blocks.tokens()],
        [blocks.tokens(), blocks.heads(), blocks.state(1), blocks.state(1), blocks.rates()],
        [(x.shape[1:], x.dtype), (dt.shape[1:], wide), shared, shared, (A.shape[1:], wide)],
        [pltpu.VMEM((t.chunks, t.state, t.width), wide), pltpu.VMEM((t.state, t.width), wide)],
    )
    if t.programs > 1:
        dB, dC = (jnp.sum(a.reshape(-1, t.groups, t.programs, t.length, t.state), axis=2).astype(B.dtype) for a in (dB, dC))
    return dx, ddt, dA, dB, dC, None


_ssd.defvjp(_ssd_fwd, _ssd_bwd)


def _by_program(a: jax.Array, t: Tiling) -> jax.Array:
    """[..., heads, n] -> [..., groups * programs, heads of a program, n], with empty heads where a group is short."""
    a = a.reshape(*a.shape[:-2], t.groups, t.real_heads, a.shape[-1])
    gap = t.programs * t.heads - t.real_heads
    if gap:
        a = jnp.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, gap), (0, 0)])
    return a.reshape(*a.shape[:-3], t.groups * t.programs, t.heads, a.shape[-1])


def local_runs(run: jax.Array, t: Tiling, reverse: bool) -> jax.Array:
    """float32 [batch, blocks, chunks, tile * chunk]: each chunk's runs counted from the one that enters it, which is 0.

    run int32 [batch, length]. A chunk that no run enters counts from 1. -1 beyond the row's end. Repeated for each head
    of a tile, as the kernels read it.
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


def ssd_scan_pallas_tpu(x, dt, A, B, C, run, *, reverse: bool, chunk_size: int | None, interpret: bool) -> jax.Array:
    """Shapes as ssd_scan; A and dt float32 (float64 in the interpreter), run from segments.run_ids.

    chunk_size: tokens between kept states; None takes the largest block that fits VMEM. interpret: run the kernels in
    Pallas' TPU interpreter, on any machine.
    """
    t = Tiling.of(x.shape, x.dtype, B.shape, chunk_size)
    batch, length, heads, headdim = x.shape
    fused = _by_program(x, t).reshape(batch, length, -1)
    by_head = jnp.moveaxis(_by_program(dt[..., None], t)[..., 0], 2, 1)
    # A row each, so that rows of a vmapped call may have rates of their own.
    rates = jnp.broadcast_to(_by_program(A[:, None], t)[:, None, :, 0], (batch, t.groups * t.programs, 1, t.heads))
    gap = [(0, 0)] * 3 + [(0, t.state - B.shape[3])]
    B, C = (jnp.moveaxis(jnp.pad(a, gap), 2, 1) for a in (B, C))
    y = _ssd((t, reverse, interpret), fused, by_head, rates, B, C, local_runs(run, t, reverse).astype(dt.dtype))
    y = y.reshape(batch, length, t.groups, t.programs * t.heads, headdim)[..., :t.real_heads, :]
    return y.reshape(x.shape)
