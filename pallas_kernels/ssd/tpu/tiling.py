"""How ssd_scan is cut for a TPU core, and whether the parts fit its memory."""
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

LANES = 128
MIN_CHUNK = 32
HEADDIMS = (16, 32, 64, 128)
# The most lanes of x that one program takes, where a group has them: all heads of the published model.
MAX_WIDTH = 512
# Tokens of a block, where memory allows it. One state is kept for each block: larger blocks keep fewer states in HBM.
BLOCK = 512
# The scoped VMEM that a kernel may plan for. Every generation gives 16 MiB by default; the compiler takes the rest.
VMEM_BUDGET = 15 * 2**20


class Tiling(NamedTuple):
    """One program takes `heads` heads of one group. It walks over blocks of `block` tokens in chunks of `chunk` tokens.

    length: tokens of a row. groups: those of B and C. real_heads: heads of a group. programs: programs that share the
    heads of a group. heads: heads of a program, filled up with empty heads to a multiple of 128 lanes. state: d_state,
    filled up with zeros to a multiple of 8, the rows of a register. bytes: those of an element of x.
    """

    length: int
    groups: int
    real_heads: int
    programs: int
    heads: int
    headdim: int
    state: int
    chunk: int
    block: int
    bytes: int

    @classmethod
    def of(
        cls, x_shape: tuple[int, ...], x_dtype: DTypeLike, B_shape: tuple[int, ...], chunk_size: int | None
    ) -> 'Tiling':
        """The tiling for these shapes of x and B.

        chunk_size: the tokens of a block. None takes the largest block whose program fits the budget.
        """
        _, length, heads, headdim = x_shape
        groups, state = B_shape[2], -(-B_shape[3] // 8) * 8
        real = heads // groups
        tile = LANES // headdim
        padded = -(-real // tile) * tile
        most = max(tile, MAX_WIDTH // headdim)
        divisors = (n for n in range(1, padded + 1) if padded % n == 0)
        programs = next(n for n in divisors if padded // n % tile == 0 and padded // n <= most)
        chunk = max(MIN_CHUNK, headdim)
        whole = -(-length // chunk) * chunk
        itemsize = jnp.dtype(x_dtype).itemsize

        def with_block(block: int) -> 'Tiling':
            return cls(length, groups, real, programs, padded // programs, headdim, state, chunk, block, itemsize)

        if chunk_size is not None:
            return with_block(chunk_size)
        tiling = with_block(min(max(BLOCK, chunk), whole))
        while tiling.vmem_bytes > VMEM_BUDGET and tiling.block > chunk:
            tiling = with_block(max(chunk, tiling.block // 2 // chunk * chunk))
        return tiling

    @property
    def width(self) -> int:
        """The lanes of x in a program."""
        return self.heads * self.headdim

    @property
    def tile(self) -> int:
        """The heads in 128 lanes of x."""
        return LANES // self.headdim

    @property
    def chunks(self) -> int:
        """The chunks of a block."""
        return self.block // self.chunk

    @property
    def blocks(self) -> int:
        """The blocks of a row. The last one may reach beyond the row's end."""
        return -(-self.length // self.block)

    @property
    def vmem_bytes(self) -> int:
        """The VMEM of the backward kernel, which is the larger one.

        It holds its blocks twice, since one is filled while the other is worked on, its scratch buffers, and those
        values of a chunk that do not stay in registers.
        """
        wide = max(self.bytes, 4)
        state_lanes, head_lanes = (-(-n // LANES) * LANES for n in (self.state, self.heads))
        per_token = 3 * self.width * self.bytes + 4 * state_lanes * wide + 2 * head_lanes * wide
        state = self.state * self.width * wide
        chunk = (2250 + 19 * self.chunk) * self.width * wide  # the most that compilers for v5e, v6e and v5p took
        return 2 * (self.block * per_token + state) + (self.chunks + 3) * state + chunk


def why_not(
    x_shape: tuple[int, ...], x_dtype: DTypeLike, B_shape: tuple[int, ...], chunk_size: int | None, interpret: bool
) -> str | None:
    """The reason why pallas_tpu cannot serve a call, as a sentence, or None if it can.

    interpret: whether the kernels run in the interpreter, which alone computes in float64.
    """
    dtypes = ['bfloat16', 'float32'] + ['float64'] * interpret
    if jnp.dtype(x_dtype).name not in dtypes:
        return f'pallas_tpu computes in bfloat16 or float32 and x is {jnp.dtype(x_dtype).name}'
    headdim, state = x_shape[3], B_shape[3]
    if headdim not in HEADDIMS:
        return f'pallas_tpu needs a headdim of {", ".join(map(str, HEADDIMS))} and x has {headdim}'
    if not 16 <= state <= 256:
        return f'pallas_tpu needs a state of 16 to 256 and B has {state}'
    tiling = Tiling.of(x_shape, x_dtype, B_shape, chunk_size)
    if chunk_size is not None and chunk_size % tiling.chunk:
        return (f'pallas_tpu takes a chunk_size that is a multiple of {tiling.chunk} for headdim {headdim}, '
                f'and it is {chunk_size}')
    if tiling.vmem_bytes > VMEM_BUDGET:
        return (f'pallas_tpu needs {tiling.vmem_bytes / 2**20:.1f} MiB of VMEM for blocks of {tiling.block} tokens, '
                f'{tiling.heads} heads and state {state}, and plans for {VMEM_BUDGET / 2**20:.0f}: '
                'take a smaller chunk_size')
    return None
