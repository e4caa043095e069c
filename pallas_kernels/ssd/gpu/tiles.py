"""How pallas_gpu cuts a call into tiles, and the few idioms that its kernels share.

In the shapes, M is the number of chunks of all rows together, Q = 64 the tokens of a chunk (the rows of one wgmma), N
d_state and P headdim. The heads of a group are divided into `blocks` blocks of `heads` heads. A block has 64 columns
(128 for headdim 128), so that headdim 16 fills a wgmma too. The kernels see arrays of two or three axes, because a TMA
descriptor has at most five:

    x, g, y, dx     [M Q, groups blocks heads P]    bfloat16
    B, C            [M Q, groups N]                 bfloat16
    states          [M groups blocks heads P, N]    bfloat16
    D               [groups blocks, heads P]        float32
    per token       [M groups blocks, kinds heads, Q]   float32, or [M, kinds, Q] int32
"""
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

# The type is left open, because some of what is used here has other types, or is missing, in JAX 0.10.
plgpu: Any
try:
    from jax.experimental.pallas import mosaic_gpu as plgpu
except ImportError:  # a JAX without Mosaic GPU must be able to import this package; why_not_pallas_gpu refuses calls
    plgpu = None

CHUNK = 64
SHARED_MEMORY = 227 * 1024
# For barriers, the scratch buffers of reductions across warps, and the alignment of buffers.
RESERVED = 8 * 1024
STATE_TILE = 64  # columns of a state that one accumulator holds
# With fewer programs than this, the blocks of a group are shared among several programs. A multiprocessor runs two
# programs at a time, so that 132 multiprocessors run 512 programs about two times over.
PROGRAMS = 512
WARPGROUP = 'warpgroup'  # The axis of the warpgroups of one program.


def why_not(kernel: str, array: str, dtype: DTypeLike) -> str | None:
    """The reason why no kernel of this package can serve an array of this dtype, as a sentence, or None if it can.

    kernel, array: what the sentence calls them.
    """
    if plgpu is None or jax.__version_info__ < (0, 11):
        return f'the kernel of the {kernel} needs JAX 0.11 or later and this is {jax.__version__}'
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f'the kernel of the {kernel} takes bfloat16 and {array} is {jnp.dtype(dtype)}'
    return None


class Tiles(NamedTuple):
    """The sizes of one call.

    chunks: those of a row. blocks: blocks of heads of a group. heads: heads of a block. state: d_state, filled up with
    zeros to a multiple of 16, the depth of a wgmma.
    """

    batch: int
    chunks: int
    groups: int
    blocks: int
    heads: int
    headdim: int
    state: int

    @classmethod
    def of(cls, batch: int, length: int, heads: int, headdim: int, groups: int, state: int) -> 'Tiles':
        """The sizes for x [batch, length, heads, headdim] and B [batch, length, groups, state]."""
        a_block = max(CHUNK // headdim, 1)
        blocks, filled = -(-(heads // groups) // a_block), -(-state // 16) * 16
        return cls(batch, -(-length // CHUNK), groups, blocks, a_block, headdim, filled)

    @property
    def all_chunks(self) -> int:
        """The chunks of all rows together, M."""
        return self.batch * self.chunks

    @property
    def width(self) -> int:
        """The columns of x in a block."""
        return self.heads * self.headdim

    @property
    def parts(self) -> int:
        """The number of programs that share the blocks of one chunk and group."""
        divisors = [n for n in range(1, self.blocks + 1) if self.blocks % n == 0]
        return next((n for n in divisors if self.all_chunks * self.groups * n >= PROGRAMS), self.blocks)

    @property
    def steps(self) -> int:
        """The blocks of one program."""
        return self.blocks // self.parts

    @property
    def lanes(self) -> int:
        """The columns of one swizzled tile: the same for all operands of a wgmma, and a divisor of their columns."""
        return math.gcd(CHUNK, self.headdim, self.state)

    @property
    def state_tiles(self) -> list[tuple[int, int]]:
        """(first column, number of columns) of the tiles into which the columns of a state are divided."""
        return [(n, min(STATE_TILE, self.state - n)) for n in range(0, self.state, STATE_TILE)]

    @property
    def transforms(self) -> tuple[Any, Any]:
        """The layout in shared memory of what wgmma and TMA read."""
        return plgpu.TilingTransform((8, self.lanes)), plgpu.SwizzleTransform(2 * self.lanes)

    def shared(self, *shape: int) -> Any:
        """A bfloat16 buffer in shared memory that wgmma and TMA can read."""
        return plgpu.SMEM(shape, jnp.bfloat16, transforms=self.transforms)

    def block(self, shape: tuple[int, ...], index_map: Callable[..., tuple]) -> Any:
        """The spec of a pipeline's bfloat16 tiles that wgmma can read."""
        return plgpu.BlockSpec(shape, index_map, transforms=self.transforms)

    def chunk_block(self, here: 'Place') -> Any:
        """The spec for x, g, y and dx: in each step, the tokens of a chunk for one block of heads."""
        return self.block((CHUNK, self.width), lambda k: (here.m, here.group * self.blocks + here.first + k))

    def state_block(self, here: 'Place') -> Any:
        """The spec for states: in each step, the state of one block."""
        return self.block((self.width, self.state), lambda k: (self.number(here, k), 0))

    def vectors_block(self, here: 'Place', kinds: int) -> Any:
        """The spec for vectors: in each step, those of one block, in row kind * heads + head."""
        return plgpu.BlockSpec((None, kinds * self.heads, CHUNK), lambda k: (self.number(here, k), 0, 0))

    def skips_block(self, here: 'Place') -> Any:
        """The spec for D: in each step, its values for the columns of one block."""
        return plgpu.BlockSpec((None, self.width), lambda k: (here.group * self.blocks + here.first + k, 0))

    def number(self, here: 'Place', k: Any) -> Any:
        """The number of the block of step k among the blocks of all chunks and groups."""
        return (here.m * self.groups + here.group) * self.blocks + here.first + k

    def chunk_at(self, here: 'Place', k: Any) -> tuple[Any, Any]:
        """The indices in x, g, y or dx of what chunk_block reads in step k."""
        return here.tokens, pl.ds((here.group * self.blocks + here.first + k) * self.width, self.width)

    def columns(self, head: int) -> Any:
        """The slice of a block's columns that belong to one of its heads."""
        return pl.ds(head * self.headdim, self.headdim)

    def pieces(self, heads: Iterable[int]) -> list[Any]:
        """Slices of at most 64 of a block's columns, which fit into registers, for all columns of these heads."""
        width = min(self.headdim, CHUNK)
        return [
            pl.ds(first, width) for head in heads
            for first in range(head * self.headdim, (head + 1) * self.headdim, width)
        ]


class Place(NamedTuple):
    """Where a program works: chunk m, a group, its part of the group, and the first block of that part."""

    m: jax.Array
    group: jax.Array
    part: jax.Array | int
    first: jax.Array | int

    @property
    def tokens(self) -> Any:
        """The slice of the chunk's tokens among all M Q."""
        return pl.ds(self.m * CHUNK, CHUNK)

    @classmethod
    def of_part(cls, t: Tiles) -> 'Place':
        """The place of this program, in a kernel with the grid of parts_grid."""
        part = lax.axis_index('part')
        return cls(lax.axis_index('chunk'), lax.axis_index('group'), part, part * t.steps)


def parts_grid(t: Tiles) -> dict[str, Any]:
    """The arguments of `call` for one program for each chunk, group and part of the group's blocks."""
    return dict(grid=(t.all_chunks, t.groups, t.parts), grid_names=('chunk', 'group', 'part'))


def stages(steps: int, once: int, a_stage: int) -> int:
    """The number of buffers of a pipeline: what shared memory holds, but at most two and at most `steps`.

    once: bytes that a program needs in any case. a_stage: bytes of one buffer of each kind. The result is 0 if not even
    one buffer fits.
    """
    return min(2, steps, max(0, SHARED_MEMORY - RESERVED - once) // a_stage)


def call(
    kernel: Callable[..., None], out_type: Any, *operands: jax.Array, grid: tuple[int, ...],
    grid_names: tuple[str, ...], scratch_types: Sequence[Any] = (), warpgroups: int = 1, interpret: bool,
) -> Any:
    """Call plgpu.kernel with this package's parameters on the operands.

    A program is one warpgroup, or several, which read their number from the axis WARPGROUP. These must sum over nothing
    that lies in several warps, because Mosaic gives them all the same buffer for that. Returns arrays in the structure
    of out_type.
    """
    made = plgpu.kernel(
        kernel, out_type=out_type, grid=grid, grid_names=grid_names, scratch_types=scratch_types,
        compiler_params=plgpu.CompilerParams(approx_math=True),
        # The function that makes the kernel names it in profiles and in the compiler's reports.
        kernel_name=kernel.__qualname__.split('.')[0],
        **(dict(num_threads=warpgroups, thread_name=WARPGROUP) if warpgroups > 1 else {}),
        **(dict(interpret=plgpu.InterpretGPUParams()) if interpret else {}),
    )(*operands)
    # Inside shard_map, results vary over the axes that the operands vary over. plgpu.kernel does not track this.
    axes = frozenset().union(*(jax.typeof(a).manual_axis_type.varying for a in operands))
    return jax.tree.map(
        lambda a: lax.pcast(a, tuple(axes - jax.typeof(a).manual_axis_type.varying), to='varying') if axes else a, made
    )


def wide_square() -> Any:
    """A float32 buffer [Q, Q] in shared memory, in which threads that hold a wgmma's result do not collide."""
    return wide(CHUNK, CHUNK)


def wide(*shape: int) -> Any:
    """A float32 buffer in shared memory, in which threads that hold a wgmma's result do not collide."""
    return plgpu.SMEM(
        shape, jnp.float32, transforms=(plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(128))
    )


def rows(ref: Any) -> jax.Array:
    """Load a vector [Q] from shared memory, one value for each row of a wgmma's result."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(1))


def columns(ref: Any) -> jax.Array:
    """Load a vector [Q] from shared memory, one value for each column of a wgmma's result."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(0))


def vector(ref: Any, axis: int) -> jax.Array:
    """Load a vector from device memory, one value for each row (axis 1) or column (axis 0) of a wgmma's result."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(axis), optimized=False)


def tile(ref: Any) -> jax.Array:
    """Load a matrix from shared memory as float32, laid out in registers as a wgmma's result."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA).astype(jnp.float32)


def by_channel(ref: Any) -> jax.Array:
    """Load [rows, columns], multiples of 8 and 32, from shared memory as float32, each column in a single warp.

    So rows are summed without the buffer that the warpgroups of a program share.
    """
    layout = plgpu.Layout.TILED(
        plgpu.Tiling(((8, 32), (8, 8), (2,))), warp_dims=(-4,), lane_dims=(-3, -2), vector_dim=-1
    )
    return plgpu.load(ref, layout=layout, optimized=False).astype(jnp.float32)


def finite(a: jax.Array) -> jax.Array:
    """The array with zeros in place of values that are not finite."""
    return jnp.where(jnp.abs(a) < jnp.inf, a, 0.0)


def clean(ref: Any) -> None:
    """Put zeros in place of values that are not finite in a bfloat16 matrix in shared memory, 64 columns at a time."""
    columns_of_ref = ref.shape[1]
    for first in range(0, columns_of_ref, CHUNK):
        its = pl.ds(first, min(CHUNK, columns_of_ref - first))
        ref.at[:, its][...] = finite(tile(ref.at[:, its])).astype(jnp.bfloat16)


def over_rows(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The matrix with vector[i] at [i, j]."""
    return jax.lax.broadcast_in_dim(vector, shape, [0])


def over_columns(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The matrix with vector[j] at [i, j]."""
    return jax.lax.broadcast_in_dim(vector, shape, [1])


def product(a: Any, b: Any) -> jax.Array:
    """a @ b in float32 in registers. b is a bfloat16 ref in shared memory, a is one too or lies in registers."""

    def multiply(acc):
        plgpu.wgmma(acc, a, b)
        return acc[...]

    return pl.run_scoped(multiply, plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32))


def add_product(acc: jax.Array, a: jax.Array, b: Any, *, interpret: bool) -> jax.Array:
    """acc + a @ b, made where acc lies. a is a bfloat16 array in registers, and b a bfloat16 ref in shared memory."""
    if interpret:  # as in register_product
        return acc + register_product(a, b, interpret=True)

    def multiply(ref):
        plgpu.wgmma(ref, a, b)

    return pl.run_state(multiply)(plgpu.ACC.init(acc))


def register_product(a: jax.Array, b: Any, *, transposed: bool = False, interpret: bool) -> jax.Array:
    """a @ b, or a @ b^T if transposed, in float32 in registers.

    a is a bfloat16 array in registers, and b a bfloat16 ref in shared memory.
    """
    if interpret:  # the interpreter does not know operands of wgmma in registers
        b = b[...].T if transposed else b[...]
        return jax.lax.dot(a, b, preferred_element_type=jnp.float32)
    return product(a, b.transpose((1, 0)) if transposed else b)


def pipeline(
    body: Callable[..., Any], *, steps: int | jax.Array, slots: int, in_specs: list[Any],
    outputs: list[tuple[Any, Callable[[Any], Any]]], init_carry: Any = None,
) -> Callable[..., Any]:
    """plgpu.emit_pipeline for the inputs, with outputs that are copied here.

    The copies of emit_pipeline are predicated, which the interpreter does not know.

    Args:
      body: takes the refs of the inputs and of the outputs and, with init_carry, the carry. It returns the next carry.
      steps: the steps of the pipeline, at least 1.
      slots: the buffers of each input and output.
      in_specs: the specs of the inputs.
      outputs: pairs of buffers in shared memory, [slots, ...], and a function from the step to the ref to copy to.
      init_carry: the first carry, or None.

    Returns a function of the inputs' refs that runs the pipeline and returns the last carry.
    """

    def step(indices, *refs):
        (k,) = indices
        plgpu.wait_smem_to_gmem(slots - 1, wait_read_only=True)
        made = [buffers.at[lax.rem(k, jnp.int32(slots))] for buffers, _ in outputs]
        inputs, carry = refs[:len(in_specs)], refs[len(in_specs):]
        result = body(*inputs, *made, *carry)
        plgpu.commit_smem()
        for ref, (_, where) in zip(made, outputs, strict=True):
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


def load(*copies: tuple[Any, Any], barrier: Any) -> None:
    """Copy into shared memory, for each pair (from, to), and wait. `barrier` awaits one arrival for each copy."""
    for source, target in copies:
        plgpu.copy_gmem_to_smem(source, target, barrier)
    plgpu.barrier_wait(barrier)


def scores(B_smem: Any, C_smem: Any, tokens_smem: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(C_i . B_j [i, j] where token i sees token j < i or j > i and else 0, that of each token itself [Q], bad [Q]).

    B_smem, C_smem: [Q, N]. tokens_smem: int32 [3, Q]: the first and the last token that each token sees, and `bad`.
    """
    square = CHUNK, CHUNK
    made = product(C_smem, B_smem.transpose((1, 0)))
    i, j = (plgpu.broadcasted_iota(jnp.int32, square, k, layout=plgpu.Layout.WGMMA) for k in range(2))
    lo, hi, bad = (rows(tokens_smem.at[kind]) for kind in range(3))
    visible = (over_rows(lo, square) <= j) & (j <= over_rows(hi, square))
    made = jnp.where(visible, made, 0.0)
    # The weight of a token's own input stays in float32, as in xla. It is a single term of y, so its rounding to
    # bfloat16 would not average out as that of the other terms does.
    own = jnp.sum(jnp.where(i == j, made, 0.0), axis=1)
    return jnp.where(i == j, 0.0, made), own, bad
