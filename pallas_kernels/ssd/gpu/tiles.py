"""How pallas_gpu cuts a call into tiles, and the few idioms that its kernels share.

Letters: M chunks of all rows together, Q = 64 tokens a chunk (the rows of one wgmma), N state, P headdim. The heads of
a group stand in `blocks` of `heads` heads, 64 columns wide (128 for headdim 128), so that P = 16 fills a wgmma too.
Kernels see arrays of two or three axes, a TMA descriptor having five at most:

    x, g, y, dx     [M Q, groups blocks heads P]    bfloat16
    B, C            [M Q, groups N]                 bfloat16
    states          [M groups blocks heads P, N]    bfloat16
    per token       [M groups blocks, kinds heads, Q]   float32, or [M, kinds, Q] int32
"""
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

try:
    from jax.experimental.pallas import mosaic_gpu as plgpu
except ImportError:  # a JAX without Mosaic GPU imports this package too; why_not_pallas_gpu refuses the call
    plgpu = None

CHUNK = 64
SHARED_MEMORY = 227 * 1024
# Barriers, the scratch of reductions across warps and alignment of buffers.
RESERVED = 8 * 1024
STATE_TILE = 64  # columns of a state that one accumulator holds
PROGRAMS = 512  # two a multiprocessor at a time, two times over: below this, a group's blocks are shared among programs


class Tiles(NamedTuple):
    """The sizes of one call; heads counts those of a block, `blocks` the blocks of a group. state: filled up with zeros
    to a multiple of 16, the depth of a wgmma."""

    batch: int
    chunks: int
    groups: int
    blocks: int
    heads: int
    headdim: int
    state: int

    @classmethod
    def of(cls, batch: int, length: int, heads: int, headdim: int, groups: int, state: int) -> 'Tiles':
        a_block = max(CHUNK // headdim, 1)
        blocks, filled = -(-(heads // groups) // a_block), -(-state // 16) * 16
        return cls(batch, -(-length // CHUNK), groups, blocks, a_block, headdim, filled)

    @property
    def all_chunks(self) -> int:
        return self.batch * self.chunks

    @property
    def width(self) -> int:
        """Columns of x in a block."""
        return self.heads * self.headdim

    @property
    def parts(self) -> int:
        """Programs that share the blocks of a chunk's group."""
        divisors = [n for n in range(1, self.blocks + 1) if self.blocks % n == 0]
        return next((n for n in divisors if self.all_chunks * self.groups * n >= PROGRAMS), self.blocks)

    @property
    def steps(self) -> int:
        """Blocks of one program."""
        return self.blocks // self.parts

    @property
    def lanes(self) -> int:
        """Columns of one swizzled tile. The operands of a wgmma must agree in it, and it divides all their columns."""
        return math.gcd(CHUNK, self.headdim, self.state)

    @property
    def state_tiles(self) -> list[tuple[int, int]]:
        """(first column, columns) of the tiles that a state's columns are taken in."""
        return [(n, min(STATE_TILE, self.state - n)) for n in range(0, self.state, STATE_TILE)]

    @property
    def transforms(self):
        return plgpu.TilingTransform((8, self.lanes)), plgpu.SwizzleTransform(2 * self.lanes)

    def shared(self, *shape: int):
        """A bfloat16 buffer in shared memory that wgmma and TMA read."""
        return plgpu.SMEM(shape, jnp.bfloat16, transforms=self.transforms)

    def block(self, shape, index_map):
        """The spec of bfloat16 tiles that wgmma reads, for a pipeline."""
        return plgpu.BlockSpec(shape, index_map, transforms=self.transforms)

    def chunk_block(self, here: 'Place'):
        """Spec of a chunk's tokens of one block of heads a step: x, g, y, dx."""
        return self.block((CHUNK, self.width), lambda k: (here.m, here.group * self.blocks + here.first + k))

    def state_block(self, here: 'Place'):
        """Spec of one block's state a step."""
        return self.block((self.width, self.state), lambda k: (self.number(here, k), 0))

    def vectors_block(self, here: 'Place', kinds: int):
        """Spec of one block's vectors a step: row kind * heads + head."""
        return plgpu.BlockSpec((None, kinds * self.heads, CHUNK), lambda k: (self.number(here, k), 0, 0))

    def number(self, here: 'Place', k):
        """Of the block of step k, among all."""
        return (here.m * self.groups + here.group) * self.blocks + here.first + k

    def chunk_at(self, here: 'Place', k):
        """Where chunk_block lies."""
        return here.tokens, pl.ds((here.group * self.blocks + here.first + k) * self.width, self.width)

    def columns(self, head: int):
        """The columns of a block that belong to one of its heads."""
        return pl.ds(head * self.headdim, self.headdim)


class Place(NamedTuple):
    """Where a program works: chunk m, group, and the first block of its part of the group."""

    m: jax.Array
    group: jax.Array
    part: jax.Array | int
    first: jax.Array | int

    @property
    def tokens(self):
        return pl.ds(self.m * CHUNK, CHUNK)

    @classmethod
    def of_part(cls, t: Tiles) -> 'Place':
        """In a kernel with the grid of parts_grid."""
        part = lax.axis_index('part')
        return cls(lax.axis_index('chunk'), lax.axis_index('group'), part, part * t.steps)


def parts_grid(t: Tiles) -> dict:
    """A program a chunk, group and part of the group's blocks."""
    return dict(grid=(t.all_chunks, t.groups, t.parts), grid_names=('chunk', 'group', 'part'))


def stages(steps: int, once: int, a_stage: int) -> int:
    """Buffers of a pipeline: as many as shared memory holds, two at most; 0 where not even one fits (bytes)."""
    return min(2, steps, max(0, SHARED_MEMORY - RESERVED - once) // a_stage)


def call(kernel, out_type, *operands, grid, grid_names, scratch_types=(), interpret: bool):
    """plgpu.kernel on the operands with this package's parameters; one warpgroup a program."""
    made = plgpu.kernel(
        kernel, out_type=out_type, grid=grid, grid_names=grid_names, scratch_types=scratch_types,
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **(dict(interpret=plgpu.InterpretGPUParams()) if interpret else {}),
    )(*operands)
    # Inside shard_map results vary over the axes that the operands do, which plgpu.kernel does not track.
    axes = frozenset().union(*(jax.typeof(a).manual_axis_type.varying for a in operands))
    return jax.tree.map(
        lambda a: lax.pcast(a, tuple(axes - jax.typeof(a).manual_axis_type.varying), to='varying') if axes else a, made
    )


def rows(ref) -> jax.Array:
    """A vector [Q] in shared memory as one value a row of a wgmma's result."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(1))


def columns(ref) -> jax.Array:
    """A vector [Q] in shared memory as one value a column of a wgmma's result."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(0))


def tile(ref) -> jax.Array:
    """A matrix in shared memory, laid out in registers as a wgmma's result, float32."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA).astype(jnp.float32)


def over_rows(vector: jax.Array, shape) -> jax.Array:
    """vector[i] at [i, j]."""
    return jax.lax.broadcast_in_dim(vector, shape, [0])


def over_columns(vector: jax.Array, shape) -> jax.Array:
    """vector[j] at [i, j]."""
    return jax.lax.broadcast_in_dim(vector, shape, [1])


def product(a, b) -> jax.Array:
    """a @ b of two refs in shared memory, float32 in registers."""

    def multiply(acc):
        plgpu.wgmma(acc, a, b)
        return acc[...]

    return pl.run_scoped(multiply, plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32))


def register_product(a: jax.Array, b, *, transposed: bool = False, interpret: bool) -> jax.Array:
    """a @ b (a @ b^T if transposed) of bfloat16 a in registers and a ref b in shared memory, float32 in registers."""
    if interpret:  # the interpreter knows no wgmma operand in registers
        b = b[...].T if transposed else b[...]
        return jax.lax.dot(a, b, preferred_element_type=jnp.float32)
    return product(a, b.transpose((1, 0)) if transposed else b)


def pipeline(body, *, steps: int, slots: int, in_specs, outputs, init_carry=None):
    """plgpu.emit_pipeline that writes its outputs itself: emit_pipeline's are predicated, which no interpreter knows.

    outputs are pairs of buffers in shared memory [slots, ...] and a function from the step to the ref to copy one to.
    body takes the refs of inputs and of outputs and, with init_carry, the carry, and returns the next carry.
    """

    def step(indices, *refs):
        (k,) = indices
        plgpu.wait_smem_to_gmem(slots - 1, wait_read_only=True)
        made = [buffers.at[lax.rem(k, jnp.int32(slots))] for buffers, _ in outputs]
        inputs, carry = refs[:len(in_specs)], refs[len(in_specs):]
        result = body(*inputs, *made, *carry)
        plgpu.commit_smem()
        for ref, (_, where) in zip(made, outputs):
            plgpu.copy_smem_to_gmem(ref, where(k), commit_group=False)
        plgpu.commit_smem_to_gmem_group()
        return result

    def run(*inputs):
        result = plgpu.emit_pipeline(
            step, grid=(steps,), in_specs=in_specs, max_concurrent_steps=slots, init_carry=init_carry
        )(*inputs)
        plgpu.wait_smem_to_gmem(0)
        return result

    return run


def load(*copies, barrier) -> None:
    """Copy (from, to) pairs into shared memory and wait; `barrier` awaits one arrival a copy."""
    for source, target in copies:
        plgpu.copy_gmem_to_smem(source, target, barrier)
    plgpu.barrier_wait(barrier)
