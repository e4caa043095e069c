"""The gradients of x, B and C, in one kernel that reads x, the gradient of y and the states once.

For each head let W_ij = 2^(s_i - s_j) (C_i . B_j) where token i sees token j, u = dt x, and dW_ij = g_i . u_j. Then

    du_j = sum_i W_ij g_i + exit_j B_j dh;  dx = dt du;  dS_ij = sum over heads of 2^(s_i - s_j) dW_ij
    dC = dS B + sum over heads of (entry g) h;  dB = dS^T C + sum over heads of (exit u) dh

where h is the state at the chunk's entry and dh the gradient of the state at its exit. The workers of a program make dx
and dS, the keys dB and dC (division.py). dS stays in shared memory.
"""
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.ssd.gpu import tiles
from pallas_kernels.ssd.gpu.fused.division import CHANNELS, HALF, KINDS, Division, Loaded, Made, div, rem
from pallas_kernels.ssd.gpu.prepared import Prepared, Sums
from pallas_kernels.ssd.gpu.tiles import CHUNK, Place, Tiles, columns, over_columns, over_rows, plgpu, rows, tile


def gradients_memory(t: Tiles) -> tuple[int, int]:
    """The shared memory of scan_gradients in bytes: (once, for each buffer)."""
    return Division.of(t).memory()


class Gradients(NamedTuple):
    """What scan_gradients returns. In the shapes R is the number of tiles of CHANNELS in a chunk and group.

    dx: like x. dB, dC: [parts, M Q, groups N], to be summed; float32 where there are several parts, else bfloat16. The
    others are float32. of_tokens [M groups R, 4 heads, Q]: for each token of a tile's heads sum_j W_ij dW_ij and sum_i
    W_ij dW_ij without j = i, both divided by the tiles of a block, and the tile's shares of x . du and of exit u dh B.
    out [M groups R, heads, Q]: shares of entry g h C. across [M groups R, CHANNELS]: the sum of h dh over the columns
    of a state. dD [M groups R, CHANNELS]: the sum of g x over the chunk's tokens.
    """

    dx: jax.Array
    dB: jax.Array
    dC: jax.Array
    of_tokens: jax.Array
    out: jax.Array
    across: jax.Array
    dD: jax.Array

    def sums(self, p: Prepared) -> Sums:
        """The sums, with the shares added."""
        t, shape = p.t, (p.t.all_chunks, -1, CHUNK)
        pieces = t.width // CHANNELS

        def by_head(a):
            """[M groups R, heads of a tile, Q] -> [M, groups blocks heads, Q]."""
            return jnp.sum(a.reshape(-1, pieces, t.heads, CHUNK), axis=1).reshape(shape)

        of_tokens = self.of_tokens.reshape(len(self.dD), KINDS, -1, CHUNK)
        by_query, by_key, xdu, into = (by_head(of_tokens[:, kind]) for kind in range(KINDS))
        across = jnp.sum(self.across.reshape(t.all_chunks, -1, t.headdim), axis=2)
        return Sums(by_query, by_key, xdu, by_head(self.out), into, across, self.dD)


def scan_gradients(
    t: Tiles, x: jax.Array, g: jax.Array, s: jax.Array, dt: jax.Array, exit: jax.Array, entry: jax.Array, D: jax.Array,
    B: jax.Array, C: jax.Array, dexits: jax.Array, entries: jax.Array, tokens: jax.Array, *, interpret: bool,
) -> Gradients:
    """The gradients of x, B and C, and sums for those of dt, s and D.

    Values of x, g, B and C that are not finite count as zeros.

    Args:
      t: the sizes.
      x, g, B, C: bfloat16, in the shapes of tiles.py. g is the gradient of y.
      s, dt, exit, entry: [M groups blocks, heads, Q] float32.
      D: float32, in the shape of tiles.py.
      dexits: the gradients of the states at the chunks' exits, bfloat16.
      entries: the states at the chunks' entries, bfloat16.
      tokens: [M, 3, Q] int32: the first and the last token that sees each token, and whether its gradients are NaN.
      interpret: run the kernel in the interpreter.
    """
    d = Division.of(t)
    square = CHUNK, CHUNK

    def kernel(x_ref, g_ref, s_ref, dt_ref, exit_ref, entry_ref, D_ref, B_ref, C_ref, dh_ref, h_ref, tokens_ref,
               dx_ref, dB_ref, dC_ref, of_tokens_ref, out_ref, across_ref, dD_ref,
               B_smem, C_smem, tokens_smem, tiles_smem, all_made_smem, out_smem, across_smem, loaded, ready, full, used,
               finished):
        warpgroup, part = lax.axis_index('warpgroup'), lax.axis_index('part')
        here = Place(lax.axis_index('chunk'), lax.axis_index('group'), part, part * d.steps)

        def number(k):
            """The number of the tile of step k among those of all chunks and groups."""
            return (here.m * t.groups + here.group) * d.of_group + here.first + k

        def columns_at(k, piece=0):
            """The columns in x, g and dx of step k's tile, or of another tile of its block."""
            own = here.first + k
            its = own - rem(own, d.pieces) + rem(own + piece, d.pieces)
            return pl.ds((here.group * d.of_group + its) * CHANNELS, CHANNELS)

        def start(k):
            """Load step k's tile into its buffer."""
            of_block, of_states = div(number(k), d.pieces), pl.ds(number(k) * CHANNELS, CHANNELS)
            x, g = (
                [ref.at[here.tokens, columns_at(k, piece)] for piece in range(d.pieces)] for ref in (x_ref, g_ref)
            )
            vectors = [ref.at[of_block] for ref in (s_ref, s_ref, dt_ref, exit_ref, entry_ref)]
            sources = Loaded(x, g, *vectors, D_ref.at[here.group * d.of_group + here.first + k], dh_ref.at[of_states],
                             h_ref.at[of_states])
            for source, target in zip(sources.refs(), tiles_smem.at(rem(k, d.buffers)).refs(), strict=True):
                plgpu.copy_gmem_to_smem(source, target, full.at[rem(k, d.barriers)])

        def where_seen(a):
            i = plgpu.broadcasted_iota(jnp.int32, square, 1, layout=plgpu.Layout.WGMMA)
            lo, hi = rows(tokens_smem.at[0]), rows(tokens_smem.at[1])
            return jnp.where((over_rows(lo, square) <= i) & (i <= over_rows(hi, square)), a, 0.0)

        @pl.when(warpgroup < d.workers)
        def worker():
            made_smem = all_made_smem.at(warpgroup)
            made_smem.dscores[...] = plgpu.layout_cast(jnp.zeros(square, jnp.float32), plgpu.Layout.WGMMA)
            plgpu.barrier_wait(ready)
            # Everything of Q x Q is transposed, [j, i]. So W^T is in registers as the operand of the wgmma that makes
            # du. The mask is applied once for all heads, as it is to dS. Exponents are at most 0 at masked places too,
            # so that no 0 is multiplied by an infinity.
            scores = where_seen(tiles.product(B_smem, C_smem.transpose((1, 0))))
            j, i = (plgpu.broadcasted_iota(jnp.int32, square, k, layout=plgpu.Layout.WGMMA) for k in range(2))
            # The weight of a token's own input stays in float32. It has no part in the gradient of s.
            own = jnp.sum(jnp.where(i == j, scores, 0.0), axis=1)
            scores = jnp.where(i == j, 0.0, scores)
            bad = rows(tokens_smem.at[2])

            def turn(n, done):
                k = n * d.workers + warpgroup
                tile_smem, barrier = tiles_smem.at(rem(k, d.buffers)), rem(k, d.barriers)
                plgpu.barrier_wait(full.at[barrier])
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                for g_smem in tile_smem.g:
                    tiles.clean(g_smem)
                plgpu.commit_smem()
                for head in range(d.heads):
                    _of_head(d, head, tile_smem, made_smem, B_smem, scores, own, bad, interpret=interpret)
                for its in _cut(CHANNELS):
                    x, g = (tiles.by_channel(ref.at[:, its]) for ref in (tile_smem.x[0], tile_smem.g[0]))
                    made_smem.dD.at[its][...] = jnp.sum(tiles.finite(x) * g, axis=0)
                plgpu.commit_smem()
                for smem, ref in (
                    (made_smem.dx, dx_ref.at[here.tokens, columns_at(k)]), (made_smem.dD, dD_ref.at[number(k)]),
                    (made_smem.of_tokens, of_tokens_ref.at[number(k)]),
                ):
                    plgpu.copy_smem_to_gmem(smem, ref, commit_group=False)
                plgpu.commit_smem_to_gmem_group()
                plgpu.barrier_wait(used.at[barrier])
                pl.when(k + d.buffers < d.steps)(lambda: start(k + d.buffers))
                return done

            lax.fori_loop(jnp.int32(0), div(d.steps - 1 - warpgroup, d.workers) + 1, turn, None)
            plgpu.commit_smem()
            plgpu.barrier_arrive(finished)
            plgpu.wait_smem_to_gmem(0)

        def keys(first, makes_dB, makes_dC):
            """Make dB or dC or both; the first of the keys loads what all warpgroups read."""
            first_column = here.group * t.state
            of_group = here.tokens, pl.ds(first_column, t.state)
            if first:
                for source, target in (
                    (B_ref.at[of_group], B_smem), (C_ref.at[of_group], C_smem), (tokens_ref.at[here.m], tokens_smem)
                ):
                    plgpu.copy_gmem_to_smem(source, target, loaded)
                for k in range(d.buffers):
                    start(jnp.int32(k))
                plgpu.barrier_wait(loaded)
                tiles.clean(B_smem)
                tiles.clean(C_smem)
                plgpu.commit_smem()
                plgpu.barrier_arrive(ready)
            plgpu.barrier_wait(ready)

            def turn(k, made):
                dB, dC = made
                tile_smem, barrier = tiles_smem.at(rem(k, d.buffers)), rem(k, d.barriers)
                plgpu.barrier_wait(full.at[barrier])
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)

                def weighted(v_smem, weight, pieces):
                    parts = []
                    for head, at in pieces:
                        part = tiles.finite(tile(v_smem.at[:, at]))
                        parts.append((part * over_rows(weight(head), part.shape)).astype(jnp.bfloat16))
                    return jnp.concatenate(parts, axis=1)

                out = [jnp.zeros_like(rows(tile_smem.entry.at[head])) for head in range(d.heads)]
                for start_at in range(0, CHANNELS, HALF):
                    half, pieces = pl.ds(start_at, HALF), list(d.pieces_of(start_at))
                    if makes_dB:
                        exit_u = weighted(
                            tile_smem.x[0], lambda n: rows(tile_smem.exit.at[n]) * rows(tile_smem.dt.at[n]), pieces
                        )
                        dB = tiles.add_product(dB, exit_u, tile_smem.dh.at[half], interpret=interpret)
                    if makes_dC:
                        entry_g = weighted(tile_smem.g[0], lambda n: rows(tile_smem.entry.at[n]), pieces)
                        dC = tiles.add_product(dC, entry_g, tile_smem.h.at[half], interpret=interpret)
                        read = tiles.product(C_smem, tile_smem.h.at[half].transpose((1, 0)))
                        read *= entry_g.astype(jnp.float32)
                        for head, at in pieces:
                            out[head] += jnp.sum(read[:, at.start - start_at:at.start - start_at + at.size], axis=1)
                if makes_dB:
                    across_smem[...] = sum(
                        jnp.sum(tile(tile_smem.h.at[:, some]) * tile(tile_smem.dh.at[:, some]), axis=1)
                        for some in _cut(t.state)
                    )
                if makes_dC:
                    for head in range(d.heads):
                        out_smem.at[head][...] = out[head]
                plgpu.commit_smem()
                plgpu.barrier_arrive(used.at[barrier])
                if makes_dB:
                    plgpu.copy_smem_to_gmem(across_smem, across_ref.at[number(k)], commit_group=False)
                if makes_dC:
                    plgpu.copy_smem_to_gmem(out_smem, out_ref.at[number(k)], commit_group=False)
                plgpu.commit_smem_to_gmem_group()
                return dB, dC

            nothing = plgpu.layout_cast(jnp.zeros((CHUNK, t.state), jnp.float32), plgpu.Layout.WGMMA)
            made = nothing if makes_dB else None, nothing if makes_dC else None
            dB, dC = lax.fori_loop(jnp.int32(0), jnp.int32(d.steps), turn, made)
            plgpu.barrier_wait(finished)
            # The tiles are read no more.
            free_smem = tiles_smem.at(0)
            dscores_smem = (free_smem.x if makes_dB else free_smem.g)[0]
            dscores = sum(tile(all_made_smem.dscores.at[worker]) for worker in range(d.workers))
            dscores_smem[...] = where_seen(dscores).astype(jnp.bfloat16)
            plgpu.commit_smem()

            def finish(ref, free_smem, made, a, other_smem):
                """Store made + a @ other."""
                for some in _cut(t.state):
                    total = made[:, some.start:some.start + some.size] + tiles.product(a, other_smem.at[:, some])
                    bad = over_rows(rows(tokens_smem.at[2]), total.shape) != 0
                    total = jnp.where(bad, jnp.nan, total).astype(ref.dtype)
                    if ref.dtype == jnp.float32:
                        ref.at[here.part, here.tokens, pl.ds(first_column + some.start, some.size)][...] = total
                    else:
                        free_smem.at[:, some][...] = total
                if ref.dtype != jnp.float32:
                    plgpu.commit_smem()
                    plgpu.copy_smem_to_gmem(free_smem, ref.at[here.part, *of_group])

            if makes_dB:
                finish(dB_ref, free_smem.dh, dB, dscores_smem, C_smem)
            if makes_dC:
                finish(dC_ref, free_smem.h, dC, dscores_smem.transpose((1, 0)), B_smem)
            plgpu.wait_smem_to_gmem(0)

        for key, makes in enumerate([(True, True)] if d.keys == 1 else [(True, False), (False, True)]):
            pl.when(warpgroup == d.workers + key)(functools.partial(keys, key == 0, *makes))

    def vector(*shape: int) -> Any:
        return plgpu.SMEM(shape, jnp.float32)

    whole = t.all_chunks * t.groups * d.of_group
    of_key = jax.ShapeDtypeStruct((t.parts, *B.shape), jnp.bfloat16 if t.parts == 1 else jnp.float32)
    tile_ = [d.shared(d.buffers, CHUNK, CHANNELS)] * d.pieces
    state = d.shared(d.buffers, CHANNELS, t.state)
    of_heads = vector(d.buffers, d.heads, CHUNK)
    tiles_smem = Loaded(
        tile_, tile_, of_heads, of_heads, of_heads, of_heads, of_heads, vector(d.buffers, CHANNELS), state, state
    )
    return Gradients(*tiles.call(
        kernel,
        [
            jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), of_key, of_key,
            jax.ShapeDtypeStruct((whole, KINDS * d.heads, CHUNK), jnp.float32),
            jax.ShapeDtypeStruct((whole, d.heads, CHUNK), jnp.float32),
            jax.ShapeDtypeStruct((whole, CHANNELS), jnp.float32),
            jax.ShapeDtypeStruct((whole, CHANNELS), jnp.float32),
        ],
        x, g, s, dt, exit, entry, D.reshape(-1, CHANNELS), B, C, dexits, entries, tokens,
        **tiles.parts_grid(t), warpgroups=d.workers + d.keys,
        scratch_types=[
            d.shared(CHUNK, t.state), d.shared(CHUNK, t.state), plgpu.SMEM((3, CHUNK), jnp.int32), tiles_smem,
            Made(
                d.shared(d.workers, CHUNK, CHANNELS), vector(d.workers, KINDS * d.heads, CHUNK),
                vector(d.workers, CHANNELS), tiles.wide(d.workers, CHUNK, CHUNK), tiles.wide(d.workers, CHUNK, HALF),
            ),
            vector(d.heads, CHUNK), vector(CHANNELS), plgpu.Barrier(num_arrivals=3), plgpu.Barrier(),
            plgpu.Barrier(num_arrivals=len(tiles_smem.refs()), num_barriers=d.barriers),
            plgpu.Barrier(num_arrivals=d.keys, num_barriers=d.barriers), plgpu.Barrier(num_arrivals=d.workers),
        ],
        interpret=interpret,
    ))


def _cut(size: int) -> Iterator[Any]:
    """Slices of at most HALF out of so many columns."""
    return (pl.ds(n, min(HALF, size - n)) for n in range(0, size, HALF))


def _of_head(
    d: Division, head: int, loaded: Loaded, made: Made, B_smem: Any, scores: jax.Array, own: jax.Array, bad: jax.Array,
    *, interpret: bool,
) -> None:
    """What a worker does with one head of a tile."""
    its = d.columns(head)
    dt, exit = rows(loaded.dt.at[head]), rows(loaded.exit.at[head])
    half = CHUNK, HALF
    u = [
        (over_rows(dt, (CHUNK, its.size)) * tiles.finite(tile(x_smem.at[:, its]))).astype(jnp.bfloat16)
        for x_smem in loaded.x
    ]
    weights, by_key = [], jnp.zeros_like(own)
    for first in range(0, CHUNK, HALF):
        i = pl.ds(first, HALF)
        dweights = sum(
            tiles.register_product(of_piece, g_smem.at[i, its], transposed=True, interpret=interpret)
            for of_piece, g_smem in zip(u, loaded.g, strict=True)
        )
        s_i, s_j = columns(loaded.s_again.at[head, i]), rows(loaded.s.at[head])
        exponent = over_columns(s_i, half) - over_rows(s_j, half)
        decay = jnp.exp2(jnp.minimum(exponent, 0.0))
        # Every tile of a block makes all of this, and the shares are summed.
        dscore = dweights * decay * (1 / d.pieces)
        made.dscores.at[:, i][...] = tile(made.dscores.at[:, i]) + dscore
        some = scores[:, first:first + HALF]
        both = dscore * some
        # A sum over rows in registers would go through a buffer that all warpgroups share.
        made.products[...] = both
        plgpu.commit_smem()
        made.of_tokens.at[head, i][...] = jnp.sum(tiles.by_channel(made.products), axis=0)
        plgpu.commit_smem()
        by_key += jnp.sum(both, axis=1)
        weights.append((some * decay).astype(jnp.bfloat16))
    made.of_tokens.at[d.heads + head][...] = by_key
    xdu, into = jnp.zeros_like(own), jnp.zeros_like(own)
    for first in range(its.start, its.start + its.size, HALF):
        at = pl.ds(first, min(HALF, its.size))
        du = tiles.register_product(jnp.concatenate(weights, axis=1), loaded.g[0].at[:, at], interpret=interpret)
        from_exit = tiles.product(B_smem, loaded.dh.at[at].transpose((1, 0)))
        x, g = tiles.finite(tile(loaded.x[0].at[:, at])), tile(loaded.g[0].at[:, at])
        du += over_rows(own, x.shape) * g + over_rows(exit, x.shape) * from_exit
        xdu += jnp.sum(x * du, axis=1)
        into += jnp.sum(x * from_exit, axis=1)
        dx = over_rows(dt, x.shape) * du + over_columns(columns(loaded.D.at[at]), x.shape) * g
        dx = jnp.where(over_rows(bad, x.shape) != 0, jnp.nan, dx)
        made.dx.at[:, at][...] = dx.astype(jnp.bfloat16)
    made.of_tokens.at[2 * d.heads + head][...] = xdu
    made.of_tokens.at[3 * d.heads + head][...] = into * exit * dt


MEMORY = {'scan_gradients': gradients_memory}
