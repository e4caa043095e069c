"""y with the skip D x, from the tokens of each chunk and the state at its entry."""
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.ssd.gpu import tiles
from pallas_kernels.ssd.gpu.tiles import CHUNK, Place, Tiles, columns, over_columns, over_rows, plgpu, rows, tile


def outputs_memory(t: Tiles) -> tuple[int, int]:
    """The shared memory of chunk_outputs in bytes: (once, for each stage of the pipeline)."""
    once = 2 * CHUNK * (2 * t.state + t.width) + 4 * 3 * CHUNK
    return once, 2 * t.width * (2 * CHUNK + t.state) + 4 * (4 * t.heads * CHUNK + t.width)


def chunk_outputs(
    t: Tiles, x: jax.Array, s: jax.Array, dt: jax.Array, entry: jax.Array, D: jax.Array, B: jax.Array, C: jax.Array,
    entries: jax.Array, tokens: jax.Array, *, interpret: bool,
) -> jax.Array:
    """y_i = sum_j [lo_i <= j <= hi_i] 2^(s_i - s_j) (C_i . B_j) dt_j x_j  +  entry_i C_i h  +  D x_i.

    Values of x, B and C that are not finite count as zeros.

    Args:
      t: the sizes.
      x, B, C: bfloat16, in the shapes of tiles.py.
      s, dt, entry: [M groups blocks, heads, Q] float32.
      D: float32, in the shape of tiles.py.
      entries: the states h at the chunks' entries.
      tokens: [M, 3, Q] int32: the first and the last token that each token sees, and whether its y is NaN.
      interpret: run the kernel in the interpreter.

    Returns an array like x.
    """
    slots = tiles.stages(t.steps, *outputs_memory(t))

    def kernel(x_ref, s_ref, s_again_ref, dt_ref, entry_ref, D_ref, B_ref, C_ref, entries_ref, tokens_ref, y_ref,
               B_smem, C_smem, tokens_smem, u_smem, out_smem, barrier):
        here = Place.of_part(t)
        of_group = here.tokens, pl.ds(here.group * t.state, t.state)
        tiles.load(
            (B_ref.at[of_group], B_smem), (C_ref.at[of_group], C_smem), (tokens_ref.at[here.m], tokens_smem),
            barrier=barrier,
        )
        tiles.clean(B_smem)
        tiles.clean(C_smem)
        plgpu.commit_smem()
        square = CHUNK, CHUNK
        # The mask is applied once for all heads. Exponents below are at most 0 at masked places too, so that no 0 is
        # multiplied by an infinity.
        scores, own, bad = tiles.scores(B_smem, C_smem, tokens_smem)

        # s is loaded twice, because what a kernel loads lies either along rows or along columns.
        def step(x_smem, s_smem, s_again_smem, dt_smem, entry_smem, D_smem, h_smem, y_smem):
            for head in range(t.heads):
                its = t.columns(head)
                part = tiles.finite(tile(x_smem.at[:, its]))
                u_smem.at[:, its][...] = (part * over_rows(rows(dt_smem.at[head]), part.shape)).astype(jnp.bfloat16)
            plgpu.commit_smem()
            carried = tiles.product(C_smem, h_smem.transpose((1, 0)))
            for head in range(t.heads):
                its = t.columns(head)
                s_i, s_j, entry = rows(s_smem.at[head]), columns(s_again_smem.at[head]), rows(entry_smem.at[head])
                decay = jnp.exp2(jnp.minimum(over_rows(s_i, square) - over_columns(s_j, square), 0.0))
                weights = (scores * decay).astype(jnp.bfloat16)
                y = tiles.register_product(weights, u_smem.at[:, its], interpret=interpret)
                y += over_rows(own, y.shape) * tile(u_smem.at[:, its])
                y += over_rows(entry, y.shape) * carried[:, head * t.headdim:(head + 1) * t.headdim]
                y += over_columns(columns(D_smem.at[its]), y.shape) * tiles.finite(tile(x_smem.at[:, its]))
                y = jnp.where(over_rows(bad, y.shape) != 0, jnp.nan, y)
                y_smem.at[:, its][...] = y.astype(jnp.bfloat16)

        vector = t.vectors_block(here, 1)
        tiles.pipeline(
            step, steps=t.steps, slots=slots,
            in_specs=[t.chunk_block(here), *[vector] * 4, t.skips_block(here), t.state_block(here)],
            outputs=[(out_smem, lambda k: y_ref.at[t.chunk_at(here, k)])],
        )(x_ref, s_ref, s_again_ref, dt_ref, entry_ref, D_ref, entries_ref)

    return tiles.call(
        kernel, jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), x, s, s, dt, entry, D, B, C, entries, tokens,
        **tiles.parts_grid(t),
        scratch_types=[
            t.shared(CHUNK, t.state), t.shared(CHUNK, t.state), plgpu.SMEM((3, CHUNK), jnp.int32),
            t.shared(CHUNK, t.width), t.shared(slots, CHUNK, t.width), plgpu.Barrier(num_arrivals=3),
        ],
        interpret=interpret,
    )


MEMORY = {'chunk_outputs': outputs_memory}
