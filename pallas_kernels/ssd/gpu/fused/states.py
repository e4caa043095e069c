"""The state at the entry of each chunk, in one walk over the chunks of a row."""
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.ssd.gpu import tiles
from pallas_kernels.ssd.gpu.tiles import CHUNK, Tiles, over_rows, plgpu, rows, tile

CHANNELS = 64  # The rows of a state that one program holds, those of one wgmma.
STAGES = 4  # A program has little to compute and long to wait, so it has more chunks in flight than others.
# With fewer programs than this, the columns of a state are divided among several, which each read v.
PROGRAMS = 96


def state_columns(t: Tiles) -> int:
    """The columns of d_state that one program holds."""
    widths = [n for n in (64, 32, 16) if t.state % n == 0]
    tiles_of_rows = t.batch * t.groups * t.blocks * t.width // CHANNELS
    return next((n for n in widths if tiles_of_rows * (t.state // n) >= PROGRAMS), widths[-1])


def walk_memory(t: Tiles) -> tuple[int, int]:
    """The shared memory of walk_states in bytes: (once, for each stage of the pipeline)."""
    width = state_columns(t)
    return 2 * CHUNK * (CHANNELS + width), 2 * CHUNK * CHANNELS + 4 * width * CHUNK + 4 * (t.heads + 2) * CHUNK


def walk_states(
    t: Tiles, v: jax.Array, weight: jax.Array, key: jax.Array, through: jax.Array, *, reverse: bool, interpret: bool
) -> tuple[jax.Array, jax.Array]:
    """The state at the entry of each chunk, where a chunk leaves through * entry + sum_j weight_j v_j key_j^T.

    Values of v and key that are not finite count as zeros.

    Args:
      t: the sizes.
      v: in the shape of x, bfloat16. For the states themselves x, and for their gradients that of y.
      weight: [M groups blocks, heads, Q] float32. For states exit * dt, and for their gradients entry.
      key: in the shape of B, bfloat16.
      through: [M, groups blocks heads P] float32, the decay from entry to exit.
      reverse: walk from the right to the left.
      interpret: run the kernel in the interpreter.

    Returns (states bfloat16, bool [M, Q]: whether any value of v is not finite at a token).
    """
    width = state_columns(t)
    pieces = t.width // CHANNELS  # of a block
    of_row = t.groups * t.blocks * pieces  # the tiles of CHANNELS of a state
    heads = t.heads // pieces or 1
    slots = min(STAGES, t.chunks)
    lanes = math.gcd(t.headdim, width)
    transforms = plgpu.TilingTransform((8, lanes)), plgpu.SwizzleTransform(2 * lanes)

    def shared(*shape: int) -> Any:
        return plgpu.SMEM(shape, jnp.bfloat16, transforms=transforms)

    def kernel(v_ref, weight_ref, key_ref, through_ref, out_ref, bad_ref, scaled_smem, key_smem, entries_smem,
               bads_smem):
        row, channel, column = lax.axis_index('row'), lax.axis_index('channel'), lax.axis_index('column')
        group = channel // (t.blocks * pieces)

        def chunk(k):
            return row * t.chunks + (t.chunks - 1 - k if reverse else k)

        def step(v_smem, weight_smem, loaded_key_smem, through_smem, entry_smem, bad_smem, h):
            bad = jnp.zeros_like(rows(weight_smem.at[0]))
            for head in range(heads):
                its = pl.ds(head * (CHANNELS // heads), CHANNELS // heads)
                loaded = tile(v_smem.at[:, its])
                part = tiles.finite(loaded)
                scaled = part * over_rows(rows(weight_smem.at[head]), part.shape)
                scaled_smem.at[:, its][...] = scaled.astype(jnp.bfloat16)
                bad += jnp.sum(jnp.where(jnp.abs(loaded) < jnp.inf, jnp.zeros_like(loaded), 1.0), axis=1)
            bad_smem[...] = bad
            key_smem[...] = tiles.finite(tile(loaded_key_smem)).astype(jnp.bfloat16)
            plgpu.commit_smem()

            # What the chunk adds does not wait for the state that enters it, which is stored meanwhile.
            def added(acc):
                plgpu.wgmma(acc, scaled_smem.transpose((1, 0)), key_smem)
                entry_smem[...] = h.astype(jnp.bfloat16)
                return acc[...]

            added = pl.run_scoped(added, plgpu.ACC((CHANNELS, width), jnp.float32))
            return h * over_rows(rows(through_smem), h.shape) + added

        tiles.pipeline(
            step, steps=t.chunks, slots=slots,
            in_specs=[
                plgpu.BlockSpec((CHUNK, CHANNELS), lambda k: (chunk(k), channel), transforms=transforms),
                plgpu.BlockSpec(
                    (None, heads, CHUNK), lambda k: (chunk(k) * (of_row // pieces) + channel // pieces, 0, 0)
                ),
                plgpu.BlockSpec(
                    (CHUNK, width), lambda k: (chunk(k), group * (t.state // width) + column), transforms=transforms
                ),
                plgpu.BlockSpec((None, CHANNELS), lambda k: (chunk(k), channel)),
            ],
            outputs=[
                (entries_smem, lambda k: out_ref.at[
                    pl.ds((chunk(k) * of_row + channel) * CHANNELS, CHANNELS), pl.ds(column * width, width)
                ]),
                (bads_smem, lambda k: bad_ref.at[column, chunk(k) * of_row + channel]),
            ],
            init_carry=plgpu.layout_cast(jnp.zeros((CHANNELS, width), jnp.float32), plgpu.Layout.WGMMA),
        )(v_ref, weight_ref, key_ref, through_ref)

    states, bad = tiles.call(
        kernel,
        [
            jax.ShapeDtypeStruct((t.all_chunks * of_row * CHANNELS, t.state), jnp.bfloat16),
            jax.ShapeDtypeStruct((t.state // width, t.all_chunks * of_row, CHUNK), jnp.float32),
        ],
        v, weight, key, through,
        grid=(t.batch, of_row, t.state // width), grid_names=('row', 'channel', 'column'),
        scratch_types=[
            shared(CHUNK, CHANNELS), shared(CHUNK, width), shared(slots, CHANNELS, width),
            plgpu.SMEM((slots, CHUNK), jnp.float32),
        ],
        interpret=interpret,
    )
    return states, jnp.any(bad[0].reshape(t.all_chunks, of_row, CHUNK) > 0, axis=1)


MEMORY = {'walk_states': walk_memory}
