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
    return 2 * CHUNK * (CHUNK + 3 * width + t.width), 2 * t.width * (CHUNK + width) + 4 * 2 * t.heads * CHUNK


def key_gradients(
    t: Tiles, dscores: jax.Array, others: jax.Array, own: jax.Array, v: jax.Array, weight: jax.Array,
    states: jax.Array, *, transposed: bool, interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """The gradient of `own`, which is B or C: dscores @ others + sum over heads of (weight v) state.

    Args:
      t: the sizes.
      dscores: [M groups Q, Q] bfloat16, the sum over parts of the dS^T of chunk_gradients.
      others: C for the gradient of B, and B for that of C.
      own: B or C.
      v: x for the gradient of B, and g for that of C.
      weight: [M groups blocks, heads, Q] float32: exit dt for the gradient of B, and entry for that of C.
      states: the gradients of the states at the exits for B, and the states at the entries for C.
      transposed: take dscores^T, for C.
      interpret: run the kernel in the interpreter.

    Returns (dB or dC like B, sums float32 [M groups blocks, heads, Q] of weight_i v_i state own_i).
    """
    width = state_columns(t)
    cuts = t.state // width
    blocks = t.all_chunks * t.groups * t.blocks
    slots = tiles.stages(t.blocks, *keys_memory(t))

    def kernel(dscores_ref, others_ref, own_ref, v_ref, weight_ref, states_ref, out_ref, sums_ref,
               dscores_smem, others_smem, own_smem, out_smem, scaled_smem, all_sums_smem, barrier):
        column = lax.axis_index('column')
        here = Place(lax.axis_index('chunk'), lax.axis_index('group'), 0, 0)
        of_group = here.tokens, pl.ds((here.group * cuts + column) * width, width)
        tiles.load(
            (dscores_ref.at[pl.ds((here.m * t.groups + here.group) * CHUNK, CHUNK)], dscores_smem),
            (others_ref.at[of_group], others_smem), (own_ref.at[of_group], own_smem), barrier=barrier,
        )
        scores = dscores_smem.transpose((1, 0)) if transposed else dscores_smem
        within = tiles.product(scores, others_smem)

        def step(v_smem, weight_smem, state_smem, sums_smem, total):
            read = tiles.product(own_smem, state_smem.transpose((1, 0)))
            for head in range(t.heads):
                its = t.columns(head)
                part = tiles.finite(tile(v_smem.at[:, its]))
                part = (part * over_rows(rows(weight_smem.at[head]), part.shape)).astype(jnp.bfloat16)
                scaled_smem.at[:, its][...] = part
                of_head = read[:, head * t.headdim:(head + 1) * t.headdim]
                sums_smem.at[head][...] = jnp.sum(part.astype(jnp.float32) * of_head, axis=1)
            plgpu.commit_smem()
            return total + tiles.product(scaled_smem, state_smem)

        total = tiles.pipeline(
            step, steps=t.blocks, slots=slots,
            in_specs=[
                t.chunk_block(here), t.vectors_block(here, 1),
                t.block((t.width, width), lambda k: (t.number(here, k), column)),
            ],
            outputs=[(all_sums_smem, lambda k: sums_ref.at[column * blocks + t.number(here, k)])],
            init_carry=within,
        )(v_ref, weight_ref, states_ref)
        out_smem[...] = total.astype(jnp.bfloat16)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_smem, out_ref.at[of_group])
        plgpu.wait_smem_to_gmem(0)

    gradient, sums = tiles.call(
        kernel,
        [
            jax.ShapeDtypeStruct(own.shape, jnp.bfloat16),
            jax.ShapeDtypeStruct((cuts * blocks, t.heads, CHUNK), jnp.float32),
        ],
        dscores, others, own, v, weight, states,
        grid=(t.all_chunks, t.groups, cuts), grid_names=('chunk', 'group', 'column'),
        scratch_types=[
            t.shared(CHUNK, CHUNK), *[t.shared(CHUNK, width)] * 3, t.shared(CHUNK, t.width),
            plgpu.SMEM((slots, t.heads, CHUNK), jnp.float32), plgpu.Barrier(num_arrivals=3),
        ],
        interpret=interpret,
    )
    return gradient, jnp.sum(sums.reshape(cuts, blocks, t.heads, CHUNK), axis=0)


MEMORY = {'chunk_gradients': gradients_memory, 'key_gradients': keys_memory}
