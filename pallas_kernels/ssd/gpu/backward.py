"""The backward kernels of pallas_gpu. The gradients of states are made by chunk_states and carry_states in forward.py.

For each head let W_ij = 2^(s_i - s_j) (C_i . B_j) where token i sees token j, u = dt x, and dW_ij = g_i . u_j. Then

    chunk_gradients   du_j = sum_i W_ij g_i + exit_j B_j dh;  dx = dt du;  dS_ij = sum over heads of 2^(s_i - s_j) dW_ij
    key_gradients     dC = dS B + sum over heads of (entry g) h;  dB = dS^T C + sum over heads of (exit u) dh

where h is the state at the chunk's entry and dh the gradient of the state at its exit. Both kernels also return those
sums over tokens from which the gradient of s is made, so that no array of Q x Q for each head leaves a program. Shapes
are those of tiles.py.
"""
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.ssd.gpu import tiles
from pallas_kernels.ssd.gpu.tiles import CHUNK, Place, Tiles, columns, over_columns, over_rows, plgpu, rows, tile


def gradients_memory(t: Tiles) -> tuple[int, int]:
    """The shared memory of chunk_gradients in bytes: (once, for each stage of the pipeline)."""
    once = 2 * CHUNK * (2 * t.state + t.width) + 4 * CHUNK * CHUNK + 4 * 3 * CHUNK
    return once, 2 * t.width * (3 * CHUNK + t.state) + 4 * (7 * t.heads * CHUNK + 2 * t.width)


def chunk_gradients(
    t: Tiles, x: jax.Array, g: jax.Array, vectors: jax.Array, D: jax.Array, B: jax.Array, C: jax.Array,
    dexits: jax.Array, tokens: jax.Array, *, interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The gradient of x, that of the scores C B^T, and sums for the gradients of dt, s and D.

    Args:
      t: the sizes.
      x, g, B, C: bfloat16, in the shapes of tiles.py. g is the gradient of y.
      vectors: [M groups blocks, 4 heads, Q] float32: s, s again, dt, exit.
      D: float32, in the shape of tiles.py.
      dexits: the gradients of the states at the chunks' exits, bfloat16.
      tokens: [M, 3, Q] int32: the first and the last token that sees each token, and whether its dx is NaN.
      interpret: run the kernel in the interpreter.

    Returns (dx like x, dS^T bfloat16 [parts, M groups Q, Q], sums float32 [M groups blocks, 3 heads, Q], and the sums
    of g x over the chunk's tokens, float32 [M groups blocks, heads P]). The three
    kinds of sums are sum_j W_ij dW_ij for each i, sum_i W_ij dW_ij for each j, and x . du. The first two leave out
    j = i. They are made of the same products, so that what they have in common cancels in the gradient of s.
    """
    slots = tiles.stages(t.steps, *gradients_memory(t))

    def kernel(x_ref, g_ref, vectors_ref, D_ref, B_ref, C_ref, dexits_ref, tokens_ref, dx_ref, dscores_ref, sums_ref,
               dD_ref, B_smem, C_smem, g_smem, tokens_smem, dscores_smem, dxs_smem, all_sums_smem, dDs_smem, barrier):
        here = Place.of_part(t)
        of_group = here.tokens, pl.ds(here.group * t.state, t.state)
        tiles.load(
            (B_ref.at[of_group], B_smem), (C_ref.at[of_group], C_smem), (tokens_ref.at[here.m], tokens_smem),
            barrier=barrier,
        )
        # Everything of Q x Q is transposed, [j, i]. So W^T is in registers as the operand of the wgmma that makes du.
        square = CHUNK, CHUNK
        scores = tiles.product(B_smem, C_smem.transpose((1, 0)))
        bad = rows(tokens_smem.at[2])

        j, i = (plgpu.broadcasted_iota(jnp.int32, square, k, layout=plgpu.Layout.WGMMA) for k in range(2))

        def where_seen(a):
            lo, hi = rows(tokens_smem.at[0]), rows(tokens_smem.at[1])
            return jnp.where((over_rows(lo, square) <= i) & (i <= over_rows(hi, square)), a, 0.0)

        # The mask is applied once for all heads, as it is to dscores. Exponents are at most 0 at masked places too, so
        # that no 0 is multiplied by an infinity.
        scores = where_seen(scores)
        # The weight of a token's own input stays in float32, as in chunk_outputs. It has no part in the gradient of s.
        own = jnp.sum(jnp.where(i == j, scores, 0.0), axis=1)
        scores = jnp.where(i == j, 0.0, scores)

        dscores_smem[...] = jnp.zeros_like(scores)

        def step(x_smem, loaded_g_smem, vectors_smem, D_smem, dh_smem, dx_smem, sums_smem, dD_smem):
            def vector(kind, head):
                return vectors_smem.at[kind * t.heads + head]

            def g_at(its):
                return g_smem.at[its.start // CHUNK, :, pl.ds(its.start % CHUNK, its.size)]

            for its in t.pieces(range(t.heads)):
                g_at(its)[...] = tiles.finite(tile(loaded_g_smem.at[:, its])).astype(jnp.bfloat16)
            plgpu.commit_smem()
            for head in range(t.heads):
                def u(its, head=head):
                    x = tiles.finite(tile(x_smem.at[:, its]))
                    return (over_rows(rows(vector(2, head)), x.shape) * x).astype(jnp.bfloat16)

                dweights = sum(
                    tiles.register_product(u(its), g_at(its), transposed=True, interpret=interpret)
                    for its in t.pieces([head])
                )
                s, s_i = rows(vector(0, head)), columns(vector(1, head))
                decay = jnp.exp2(jnp.minimum(over_columns(s_i, square) - over_rows(s, square), 0.0))
                dscore = dweights * decay
                # The sum over heads lies in shared memory, because there are no registers for it.
                dscores_smem[...] = tile(dscores_smem) + dscore
                both = dscore * scores
                sums_smem.at[head][...] = jnp.sum(both, axis=0)
                sums_smem.at[t.heads + head][...] = jnp.sum(both, axis=1)
                weights = (scores * decay).astype(jnp.bfloat16)
                xdu = jnp.zeros_like(own)
                for its in t.pieces([head]):
                    du = tiles.register_product(weights, g_at(its), interpret=interpret)
                    from_exit = tiles.product(B_smem, dh_smem.at[its].transpose((1, 0)))
                    x, g = tiles.finite(tile(x_smem.at[:, its])), tile(g_at(its))
                    du += over_rows(own, x.shape) * g + over_rows(rows(vector(3, head)), x.shape) * from_exit
                    xdu += jnp.sum(x * du, axis=1)
                    dD_smem.at[its][...] = jnp.sum(x * g, axis=0)
                    dx = over_rows(rows(vector(2, head)), x.shape) * du
                    dx += over_columns(columns(D_smem.at[its]), x.shape) * g
                    dx = jnp.where(over_rows(bad, x.shape) != 0, jnp.nan, dx)
                    dx_smem.at[:, its][...] = dx.astype(jnp.bfloat16)
                sums_smem.at[2 * t.heads + head][...] = xdu

        tiles.pipeline(
            step, steps=t.steps, slots=slots,
            in_specs=[
                *[t.chunk_block(here)] * 2, t.vectors_block(here, 4), t.skips_block(here), t.state_block(here)
            ],
            outputs=[
                (dxs_smem, lambda k: dx_ref.at[t.chunk_at(here, k)]),
                (all_sums_smem, lambda k: sums_ref.at[t.number(here, k)]),
                (dDs_smem, lambda k: dD_ref.at[t.number(here, k)]),
            ],
        )(x_ref, g_ref, vectors_ref, D_ref, dexits_ref)
        made_smem = g_smem.at[0]  # g is read no more.
        made_smem[...] = where_seen(tile(dscores_smem)).astype(jnp.bfloat16)
        plgpu.commit_smem()
        square_at = pl.ds((here.m * t.groups + here.group) * CHUNK, CHUNK)
        plgpu.copy_smem_to_gmem(made_smem, dscores_ref.at[here.part, square_at])
        plgpu.wait_smem_to_gmem(0)

    return tiles.call(
        kernel,
        [
            jax.ShapeDtypeStruct(x.shape, jnp.bfloat16),
            jax.ShapeDtypeStruct((t.parts, t.all_chunks * t.groups * CHUNK, CHUNK), jnp.bfloat16),
            jax.ShapeDtypeStruct((t.all_chunks * t.groups * t.blocks, 3 * t.heads, CHUNK), jnp.float32),
            jax.ShapeDtypeStruct((t.all_chunks * t.groups * t.blocks, t.width), jnp.float32),
        ],
        x, g, vectors, D, B, C, dexits, tokens,
        **tiles.parts_grid(t),
        scratch_types=[
            t.shared(CHUNK, t.state), t.shared(CHUNK, t.state), t.shared(t.width // CHUNK, CHUNK, CHUNK),
            plgpu.SMEM((3, CHUNK), jnp.int32), tiles.wide_square(), t.shared(slots, CHUNK, t.width),
            plgpu.SMEM((slots, 3 * t.heads, CHUNK), jnp.float32), plgpu.SMEM((slots, t.width), jnp.float32),
            plgpu.Barrier(num_arrivals=3),
        ],
        interpret=interpret,
    )


def state_columns(t: Tiles) -> int:
    """The columns of d_state for which one program of key_gradients makes the gradient."""
    return next(n for n in (64, 48, 32, 16) if t.state % n == 0 and n % t.lanes == 0)


def keys_memory(t: Tiles) -> tuple[int, int]:
    """The shared memory of key_gradients in bytes: (once, for each stage of the pipeline)."""
    width = state_columns(t)
    once = 2 * CHUNK * (CHUNK + 2 * width + t.width)
    return once, 2 * (2 * t.width * (CHUNK + width) + 4 * 2 * t.heads * CHUNK) + 4 * t.width


def key_gradients(
    t: Tiles, dscores: jax.Array, B: jax.Array, C: jax.Array, of_B: tuple[jax.Array, jax.Array, jax.Array],
    of_C: tuple[jax.Array, jax.Array, jax.Array], *, interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """dB = dS^T C + sum over heads of (exit u) dh and dC = dS B + sum over heads of (entry g) h.

    Args:
      t: the sizes.
      dscores: [M groups Q, Q] bfloat16, the sum over parts of the dS^T of chunk_gradients.
      B, C: bfloat16, in the shapes of tiles.py.
      of_B: (x, exit dt float32 [M groups blocks, heads, Q], dh: the gradients of the states at the chunks' exits).
      of_C: (g, entry like exit dt, h: the states at the chunks' entries).
      interpret: run the kernel in the interpreter.

    Returns (dB, dC, sums float32 [M groups blocks, 2 heads, Q], and for each row of a state the sum of h dh, float32
    [M groups blocks heads P]). The two kinds of sums are (exit u) dh B and (entry g) h C of each token.
    """
    width = state_columns(t)
    cuts = t.state // width
    blocks = t.all_chunks * t.groups * t.blocks
    slots = tiles.stages(t.blocks, *keys_memory(t))

    def kernel(dscores_ref, B_ref, C_ref, x_ref, exit_ref, dh_ref, g_ref, entry_ref, h_ref, dB_ref, dC_ref, sums_ref,
               across_ref, dscores_smem, B_smem, C_smem, scaled_smem, all_sums_smem, acrosses_smem, barrier):
        column = lax.axis_index('column')
        here = Place(lax.axis_index('chunk'), lax.axis_index('group'), 0, 0)
        of_group = here.tokens, pl.ds((here.group * cuts + column) * width, width)
        tiles.load(
            (dscores_ref.at[pl.ds((here.m * t.groups + here.group) * CHUNK, CHUNK)], dscores_smem),
            (B_ref.at[of_group], B_smem), (C_ref.at[of_group], C_smem), barrier=barrier,
        )
        within = tiles.product(dscores_smem, C_smem), tiles.product(dscores_smem.transpose((1, 0)), B_smem)

        def step(x_smem, exit_smem, dh_smem, g_smem, entry_smem, h_smem, sums_smem, across_smem, totals):
            def added(kind, total, own_smem, v_smem, weight_smem, state_smem):
                read = tiles.product(own_smem, state_smem.transpose((1, 0)))
                for head in range(t.heads):
                    its = t.columns(head)
                    part = tiles.finite(tile(v_smem.at[:, its]))
                    part = (part * over_rows(rows(weight_smem.at[head]), part.shape)).astype(jnp.bfloat16)
                    scaled_smem.at[:, its][...] = part
                    of_head = read[:, head * t.headdim:(head + 1) * t.headdim]
                    sums_smem.at[kind * t.heads + head][...] = jnp.sum(part.astype(jnp.float32) * of_head, axis=1)
                plgpu.commit_smem()
                return total + tiles.product(scaled_smem, state_smem)

            for first in range(0, t.width, CHUNK):
                its = pl.ds(first, CHUNK)
                across_smem.at[its][...] = jnp.sum(tile(h_smem.at[its]) * tile(dh_smem.at[its]), axis=1)
            dB, dC = totals
            dB = added(0, dB, B_smem, x_smem, exit_smem, dh_smem)
            return dB, added(1, dC, C_smem, g_smem, entry_smem, h_smem)

        of_block = [
            t.chunk_block(here), t.vectors_block(here, 1),
            t.block((t.width, width), lambda k: (t.number(here, k), column)),
        ]
        totals = tiles.pipeline(
            step, steps=t.blocks, slots=slots, in_specs=of_block * 2,
            outputs=[
                (all_sums_smem, lambda k: sums_ref.at[column * blocks + t.number(here, k)]),
                (acrosses_smem, lambda k: across_ref.at[column * blocks + t.number(here, k)]),
            ],
            init_carry=within,
        )(x_ref, exit_ref, dh_ref, g_ref, entry_ref, h_ref)
        made_smem = B_smem, C_smem  # They are read no more.
        for smem, total in zip(made_smem, totals, strict=True):
            smem[...] = total.astype(jnp.bfloat16)
        plgpu.commit_smem()
        for smem, ref in zip(made_smem, (dB_ref, dC_ref), strict=True):
            plgpu.copy_smem_to_gmem(smem, ref.at[of_group])
        plgpu.wait_smem_to_gmem(0)

    dB, dC, sums, across = tiles.call(
        kernel,
        [
            *[jax.ShapeDtypeStruct(B.shape, jnp.bfloat16)] * 2,
            jax.ShapeDtypeStruct((cuts * blocks, 2 * t.heads, CHUNK), jnp.float32),
            jax.ShapeDtypeStruct((cuts * blocks, t.width), jnp.float32),
        ],
        dscores, B, C, *of_B, *of_C,
        grid=(t.all_chunks, t.groups, cuts), grid_names=('chunk', 'group', 'column'),
        scratch_types=[
            t.shared(CHUNK, CHUNK), *[t.shared(CHUNK, width)] * 2, t.shared(CHUNK, t.width),
            plgpu.SMEM((slots, 2 * t.heads, CHUNK), jnp.float32), plgpu.SMEM((slots, t.width), jnp.float32),
            plgpu.Barrier(num_arrivals=3),
        ],
        interpret=interpret,
    )
    sums, across = (jnp.sum(a.reshape(cuts, blocks, *a.shape[1:]), axis=0) for a in (sums, across))
    return dB, dC, sums, across.reshape(-1)


MEMORY = {'chunk_gradients': gradients_memory, 'key_gradients': keys_memory}
