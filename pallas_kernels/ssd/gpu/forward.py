"""The forward kernels of pallas_gpu: the states of chunks, their carry, and the outputs. Shapes are those of tiles.py.

Let s be the logarithm of the decays (base 2), summed over the chunk's tokens of one run in scan direction. Then

    chunk_states    state = sum_j weight_j v_j key_j^T                        one program for each chunk and group
    carry_states    entry of a chunk = through * entry of the chunk before + state of the chunk before
    chunk_outputs   y_i = sum_j [lo_i <= j <= hi_i] 2^(s_i - s_j) (C_i . B_j) dt_j x_j  +  entry_i C_i h

Only carry_states knows the direction of the scan. In the other kernels it is contained in lo, hi and the vectors.
Source: Mamba-2 (Dao and Gu 2024), section 6.
"""
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.ssd.gpu import tiles
from pallas_kernels.ssd.gpu.tiles import CHUNK, Place, Tiles, columns, over_columns, over_rows, plgpu, rows, tile

# A program of carry_states holds a tile of CARRY_ROWS x CARRY_COLUMNS and has CARRY_STAGES chunks in flight, because it
# has little to compute and long to wait.
CARRY_ROWS = 64
CARRY_COLUMNS = 32
CARRY_STAGES = 6


def states_memory(t: Tiles) -> tuple[int, int]:
    """The shared memory of chunk_states in bytes: (once, for each stage of the pipeline)."""
    return 2 * CHUNK * (t.state + t.width), 2 * t.width * (CHUNK + t.state) + 4 * t.heads * CHUNK


def chunk_states(t: Tiles, v: jax.Array, weight: jax.Array, key: jax.Array, *, interpret: bool) -> jax.Array:
    """For each chunk, the sum of weight_j v_j key_j^T over its tokens j.

    Args:
      t: the sizes.
      v: in the shape of x, bfloat16.
      weight: [M groups blocks, heads, Q] float32.
      key: in the shape of B, bfloat16.
      interpret: run the kernel in the interpreter.

    Returns [M groups blocks heads P, N] bfloat16.
    """
    slots = tiles.stages(t.steps, *states_memory(t))

    def kernel(v_ref, weight_ref, key_ref, out_ref, key_smem, scaled_smem, out_smem, barrier):
        here = Place.of_part(t)
        tiles.load((key_ref.at[here.tokens, pl.ds(here.group * t.state, t.state)], key_smem), barrier=barrier)

        def step(v_smem, weight_smem, state_smem):
            for head in range(t.heads):
                its = t.columns(head)
                part = tiles.finite(tile(v_smem.at[:, its]))
                weighted = part * over_rows(rows(weight_smem.at[head]), part.shape)
                scaled_smem.at[:, its][...] = weighted.astype(jnp.bfloat16)
            plgpu.commit_smem()
            for first, width in t.state_tiles:
                state = tiles.product(scaled_smem.transpose((1, 0)), key_smem.at[:, pl.ds(first, width)])
                state_smem.at[:, pl.ds(first, width)][...] = state.astype(jnp.bfloat16)

        tiles.pipeline(
            step, steps=t.steps, slots=slots, in_specs=[t.chunk_block(here), t.vectors_block(here, 1)],
            outputs=[(out_smem, lambda k: out_ref.at[pl.ds(t.number(here, k) * t.width, t.width)])],
        )(v_ref, weight_ref)

    return tiles.call(
        kernel,
        jax.ShapeDtypeStruct((t.all_chunks * t.groups * t.blocks * t.width, t.state), jnp.bfloat16),
        v, weight, key,
        **tiles.parts_grid(t),
        scratch_types=[
            t.shared(CHUNK, t.state), t.shared(CHUNK, t.width), t.shared(slots, t.width, t.state), plgpu.Barrier(),
        ],
        interpret=interpret,
    )


def carry_states(t: Tiles, states: jax.Array, through: jax.Array, *, reverse: bool, interpret: bool) -> jax.Array:
    """The state at the entry of each chunk.

    Args:
      t: the sizes.
      states: the result of chunk_states.
      through: [M, groups blocks heads P] float32, the decay from entry to exit.
      reverse: carry from the right to the left.
      interpret: run the kernel in the interpreter.

    Returns an array like states.
    """
    channels = t.groups * t.blocks * t.width
    width = CARRY_COLUMNS if t.state % CARRY_COLUMNS == 0 else 16
    slots = min(CARRY_STAGES, t.chunks)
    transforms = plgpu.TilingTransform((8, width)), plgpu.SwizzleTransform(2 * width)

    def kernel(states_ref, through_ref, out_ref, out_smem):
        row, channel, column = lax.axis_index('row'), lax.axis_index('channel'), lax.axis_index('column')

        def chunk(k):
            return row * t.chunks + (t.chunks - 1 - k if reverse else k)

        def tile_of(k):
            return chunk(k) * (channels // CARRY_ROWS) + channel

        def step(state_smem, through_smem, entry_smem, h):
            entry_smem[...] = h.astype(jnp.bfloat16)
            return h * over_rows(rows(through_smem), h.shape) + tile(state_smem)

        tiles.pipeline(
            step, steps=t.chunks, slots=slots,
            in_specs=[
                plgpu.BlockSpec((CARRY_ROWS, width), lambda k: (tile_of(k), column), transforms=transforms),
                plgpu.BlockSpec((None, CARRY_ROWS), lambda k: (chunk(k), channel)),
            ],
            outputs=[(
                out_smem,
                lambda k: out_ref.at[pl.ds(tile_of(k) * CARRY_ROWS, CARRY_ROWS), pl.ds(column * width, width)],
            )],
            init_carry=plgpu.layout_cast(jnp.zeros((CARRY_ROWS, width), jnp.float32), plgpu.Layout.WGMMA),
        )(states_ref, through_ref)

    return tiles.call(
        kernel, jax.ShapeDtypeStruct(states.shape, jnp.bfloat16),
        states, through,
        grid=(t.batch, channels // CARRY_ROWS, t.state // width), grid_names=('row', 'channel', 'column'),
        scratch_types=[plgpu.SMEM((slots, CARRY_ROWS, width), jnp.bfloat16, transforms=transforms)],
        interpret=interpret,
    )


def outputs_memory(t: Tiles) -> tuple[int, int]:
    """The shared memory of chunk_outputs in bytes: (once, for each stage of the pipeline)."""
    once = 2 * CHUNK * (2 * t.state + t.width) + 4 * 3 * CHUNK
    return once, 2 * t.width * (2 * CHUNK + t.state) + 4 * (4 * t.heads * CHUNK + t.width)


def chunk_outputs(
    t: Tiles, x: jax.Array, vectors: jax.Array, D: jax.Array, B: jax.Array, C: jax.Array, entries: jax.Array,
    tokens: jax.Array, *, interpret: bool,
) -> jax.Array:
    """y with the skip D x, from the tokens of each chunk and the state at its entry.

    Args:
      t: the sizes.
      x, B, C: bfloat16, in the shapes of tiles.py.
      vectors: [M groups blocks, 4 heads, Q] float32: s, dt, entry, and s again, because what is loaded lies either
        along rows or along columns.
      D: float32, in the shape of tiles.py.
      entries: the result of carry_states.
      tokens: [M, 3, Q] int32: the first and the last token that each token sees, and whether its y is NaN.
      interpret: run the kernel in the interpreter.

    Returns an array like x.
    """
    slots = tiles.stages(t.steps, *outputs_memory(t))

    def kernel(x_ref, vectors_ref, D_ref, B_ref, C_ref, entries_ref, tokens_ref, y_ref, B_smem, C_smem, tokens_smem,
               u_smem, out_smem, barrier):
        here = Place.of_part(t)
        of_group = here.tokens, pl.ds(here.group * t.state, t.state)
        tiles.load(
            (B_ref.at[of_group], B_smem), (C_ref.at[of_group], C_smem), (tokens_ref.at[here.m], tokens_smem),
            barrier=barrier,
        )
        square = CHUNK, CHUNK
        # The mask is applied once for all heads. Exponents below are at most 0 at masked places too, so that no 0 is
        # multiplied by an infinity.
        scores, own, bad = tiles.scores(B_smem, C_smem, tokens_smem)

        def step(x_smem, vectors_smem, D_smem, h_smem, y_smem):
            def vector(kind, head):
                return vectors_smem.at[kind * t.heads + head]

            for head in range(t.heads):
                its = t.columns(head)
                part = tiles.finite(tile(x_smem.at[:, its]))
                u_smem.at[:, its][...] = (part * over_rows(rows(vector(1, head)), part.shape)).astype(jnp.bfloat16)
            plgpu.commit_smem()
            carried = tiles.product(C_smem, h_smem.transpose((1, 0)))
            for head in range(t.heads):
                its = t.columns(head)
                s, s_j, entry = rows(vector(0, head)), columns(vector(3, head)), rows(vector(2, head))
                decay = jnp.exp2(jnp.minimum(over_rows(s, square) - over_columns(s_j, square), 0.0))
                weights = (scores * decay).astype(jnp.bfloat16)
                y = tiles.register_product(weights, u_smem.at[:, its], interpret=interpret)
                y += over_rows(own, y.shape) * tile(u_smem.at[:, its])
                y += over_rows(entry, y.shape) * carried[:, head * t.headdim:(head + 1) * t.headdim]
                y += over_columns(columns(D_smem.at[its]), y.shape) * tiles.finite(tile(x_smem.at[:, its]))
                y = jnp.where(over_rows(bad, y.shape) != 0, jnp.nan, y)
                y_smem.at[:, its][...] = y.astype(jnp.bfloat16)

        tiles.pipeline(
            step, steps=t.steps, slots=slots,
            in_specs=[t.chunk_block(here), t.vectors_block(here, 4), t.skips_block(here), t.state_block(here)],
            outputs=[(out_smem, lambda k: y_ref.at[t.chunk_at(here, k)])],
        )(x_ref, vectors_ref, D_ref, entries_ref)

    return tiles.call(
        kernel, jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), x, vectors, D, B, C, entries, tokens,
        **tiles.parts_grid(t),
        scratch_types=[
            t.shared(CHUNK, t.state), t.shared(CHUNK, t.state), plgpu.SMEM((3, CHUNK), jnp.int32),
            t.shared(CHUNK, t.width), t.shared(slots, CHUNK, t.width), plgpu.Barrier(num_arrivals=3),
        ],
        interpret=interpret,
    )


MEMORY = {'chunk_states': states_memory, 'chunk_outputs': outputs_memory}
