"""How the work on a chunk's gradients is divided, among programs, warpgroups and tiles, and what lies in shared memory.

A program works on a chunk and loads tiles of CHANNELS channels. Some of its warpgroups, the workers, take turns at the
tiles. The others, the keys, work on every tile.
"""
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.ssd.gpu import tiles
from pallas_kernels.ssd.gpu.tiles import CHUNK, Tiles, plgpu

CHANNELS = 64
HALF = CHUNK // 2  # A worker holds half of the queries at a time, so that it needs few registers.
BUFFERS = 4
KINDS = 4  # of sums that a worker returns for each head


def div(a: jax.Array, n: int) -> jax.Array:
    """a // n for an int32 of at least 0."""
    return lax.div(a, jnp.int32(n))


def rem(a: jax.Array, n: int) -> jax.Array:
    """a % n for an int32 of at least 0."""
    return lax.rem(a, jnp.int32(n))


class Division(NamedTuple):
    """How a program's work is divided.

    pieces: tiles of CHANNELS that a block has. heads: heads of a tile. steps: tiles of a program. workers, keys: the
    warpgroups of each kind. buffers: tiles that are in shared memory.
    """

    t: Tiles
    pieces: int
    heads: int
    steps: int
    workers: int
    keys: int
    buffers: int

    @classmethod
    def of(cls, t: Tiles) -> 'Division':
        pieces = t.width // CHANNELS
        steps = t.steps * pieces
        # Three warpgroups have 168 registers for each thread. dB and dC need one each for two columns of a state, so
        # with large states each has a key of its own.
        keys = 1 if t.state <= 80 else 2
        workers = 2 if keys == 1 and steps > 1 else 1
        d = cls(t, pieces, t.heads // pieces or 1, steps, workers, keys, 0)
        once, a_buffer = d.memory()
        return d._replace(buffers=min(BUFFERS, steps, max(0, tiles.SHARED_MEMORY - tiles.RESERVED - once) // a_buffer))

    def memory(self) -> tuple[int, int]:
        """Bytes of shared memory (once, for each buffer)."""
        t, row = self.t, 4 * CHUNK
        once = 2 * 2 * CHUNK * t.state + 3 * row
        once += self.workers * (row * (CHUNK + HALF) + 2 * CHUNK * CHANNELS + row * KINDS * self.heads + 4 * CHANNELS)
        once += row * self.heads + 4 * CHANNELS
        vectors = 5 * row * self.heads + 4 * CHANNELS
        return once, 2 * 2 * CHUNK * CHANNELS * self.pieces + 2 * 2 * CHANNELS * t.state + vectors

    @property
    def of_group(self) -> int:
        """The tiles of a group."""
        return self.t.blocks * self.pieces

    @property
    def barriers(self) -> int:
        """Each is for the steps of one buffer and one worker."""
        return math.lcm(self.workers, self.buffers)

    @property
    def lanes(self) -> int:
        """The columns of one swizzled tile, which divide the HALF tokens that a wgmma of a worker sums over."""
        return math.gcd(self.t.lanes, HALF)

    def shared(self, *shape: int) -> Any:
        """A bfloat16 buffer in shared memory that wgmma and TMA can read."""
        transforms = plgpu.TilingTransform((8, self.lanes)), plgpu.SwizzleTransform(2 * self.lanes)
        return plgpu.SMEM(shape, jnp.bfloat16, transforms=transforms)

    def columns(self, head: int) -> Any:
        """The slice of a tile's channels that belong to one of its heads."""
        width = CHANNELS // self.heads
        return pl.ds(head * width, width)

    def pieces_of(self, first: int) -> Iterator[tuple[int, Any]]:
        """(head, slice of channels) of what each head has of the HALF channels from `first` on."""
        width = CHANNELS // self.heads
        for start in range(first, first + HALF, min(width, HALF)):
            yield start // width, pl.ds(start, min(width, HALF))


class Loaded(NamedTuple):
    """Buffers of tiles, or one tile of them, in shared memory.

    x, g: for each tile of a block, the step's own first. s, dt, exit, entry: [heads, Q]. s comes twice, because what a
    kernel loads lies either along rows or along columns. D: [CHANNELS]. dh, h: [CHANNELS, N].
    """

    x: list[Any]
    g: list[Any]
    s: Any
    s_again: Any
    dt: Any
    exit: Any
    entry: Any
    D: Any
    dh: Any
    h: Any

    def refs(self) -> list[Any]:
        """All refs in one list."""
        return [ref for field in self for ref in (field if isinstance(field, list) else [field])]

    def at(self, b: jax.Array) -> 'Loaded':
        """The tile in one buffer."""
        return Loaded(*([ref.at[b] for ref in f] if isinstance(f, list) else f.at[b] for f in self))


class Made(NamedTuple):
    """What a worker makes of a tile, and the sum dS^T of its heads, in shared memory; see Gradients.

    products: W dW of one head and HALF of the queries, [j, i].
    """

    dx: Any
    of_tokens: Any
    dD: Any
    dscores: Any
    products: Any

    def at(self, worker: jax.Array) -> 'Made':
        """That of one worker."""
        return Made(*(ref.at[worker] for ref in self))
