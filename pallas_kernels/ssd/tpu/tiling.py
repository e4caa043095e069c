"""How ssd_scan is cut for a TPU core, and whether that fits its memory."""
from typing import NamedTuple

import jax.numpy as jnp

LANES = 128
MIN_CHUNK = 32
HEADDIMS = (16, 32, 64, 128)
# Lanes of x that one program takes where a group has them: all heads of the published model.
MAX_WIDTH = 512
# Tokens a block where memory allows: a state is kept a block, so this divides the states' share of HBM.
BLOCK = 512
# Scoped VMEM that a kernel may plan for. 16 MiB is what every generation gives unasked; the rest is the compiler's.
VMEM_BUDGET = 15 * 2**20


class Tiling(NamedTuple):
    """One program takes `heads` heads of one group and walks over blocks of `block` tokens in chunks of `chunk`.

    length: tokens of a row. groups: of B and C. programs: head blocks a group. heads: a program, padded with empty heads
    to a multiple of 128 lanes. real_heads: heads of a group. state: filled up with zeros to a multiple of 8, the rows of
    a register. bytes: of an element of x.
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
    def of(cls, x_shape, x_dtype, B_shape, chunk_size: int | None) -> 'Tiling':
        """The tiling for these shapes; the largest block within the budget where chunk_size is None."""
        _, length, heads, headdim = x_shape
        groups, state = B_shape[2], -(-B_shape[3] // 8) * 8
        real = heads // groups
        tile = LANES // headdim
        padded = -(-real // tile) * tile
        most = max(tile, MAX_WIDTH // headdim)
        programs = next(n for n in range(1, padded + 1) if padded % n == 0 and padded // n % tile == 0 and padded // n <= most)
        chunk = max(MIN_CHUNK, headdim)
        whole = -(-length // chunk) * chunk

        def with_block(block):
            return cls(length, groups, real, programs, padded // programs, headdim, state, chunk, block, jnp.dtype(x_dtype).itemsize)

        if chunk_size is not None:
            return with_block(chunk_size)
        tiling = with_block(min(max(BLOCK, chunk), whole))
        while tiling.vmem_bytes > VMEM_BUDGET and tiling.block > chunk:
            tiling = with_block(max(chunk, tiling.block // 2 // chunk * chunk))
        return tiling

    @property
    def width(self) -> int:
        """Lanes of x in a program."""
        return self.heads * self.headdim

    @property
    def tile(self) -> int:
        """Heads in 128 lanes of x."""
        return LANES // self.headdim

    @property
    def chunks(self) -> int:
        """Chunks a block."""
        return self.block // self.chunk

    @property
    def blocks(self) -> int:
        """Blocks a row; the last may reach over its end."""
        return -(-self.length // self.block)

    @property
    def vmem_bytes(self) -> int:
        """VMEM of the backward kernel, the larger one: its blocks twice (one is filled while the other is worked on),
        its scratch, and the values of a chunk that do not stay in registers."""
        lanes = lambda n: -(-n // LANES) * LANES  # noqa: E731
        wide = max(self.bytes, 4)
        per_token = 3 * self.width * self.bytes + 4 * lanes(self.state) * wide + 2 * lanes(self.heads) * wide
        state = self.state * self.width * wide
        chunk = (1000 + 29 * self.chunk) * self.width * wide  # what compilers for v5e, v6e and v5p took at most
        return 2 * (self.block * per_token + state) + (self.chunks + 3) * state + chunk


def why_not(x_shape, x_dtype, B_shape, chunk_size: int | None, interpret: bool) -> str | None:
    """Why pallas_tpu cannot serve a call, in a sentence; None if it can. float64 only in the interpreter."""
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
        return f'pallas_tpu takes a chunk_size that is a multiple of {tiling.chunk} for headdim {headdim}, and it is {chunk_size}'
    if tiling.vmem_bytes > VMEM_BUDGET:
        return (f'pallas_tpu needs {tiling.vmem_bytes / 2**20:.1f} MiB of VMEM for blocks of {tiling.block} tokens, '
                f'{tiling.heads} heads and state {state}, and plans for {VMEM_BUDGET / 2**20:.0f}: take a smaller chunk_size')
    return None
