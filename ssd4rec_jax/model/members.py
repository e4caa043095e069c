"""Several SSD4Rec networks of one size that learn side by side and rank by the mean of their scores.

Networks that differ in nothing but their initial parameters and dropout make different mistakes, so that the mean of
their scores ranks better than each (Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation
using Deep Ensembles", NeurIPS 2017). The mean of K dot products over D is one dot product over K * D, so that for all
that ranks this is a network like any other, with K * D numbers for each item.
"""
import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.model.draws import Draws
from ssd4rec_jax.model.inputs import ProjectedItems
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.model.prefix_state import MixerState
from ssd4rec_jax.model.seen import SeenBias
from ssd4rec_jax.model.ssd4rec import Encoder, item_table, parameter_dtype


class Members(nnx.Module):
    """config.members networks; that with number k owns the columns k * D .. (k + 1) * D - 1 of the item table.

    They share the batches, the masks, the negatives of a sampled loss and the seen-item term; dropout is drawn apart.
    """

    def __init__(self, config: ModelConfig, num_items: int, *, rngs: nnx.Rngs):
        self.item_embedding = item_table(config, num_items, rngs)
        one = dataclasses.replace(config, members=1)
        self.encoders = nnx.List([Encoder(one, rngs=rngs) for _ in range(config.members)])
        if config.seen_bias:
            self.seen = SeenBias(parameter_dtype(config))

    def readout(
        self, items: jax.Array, layout: Layout, draws: Draws | None = None, table: list[ProjectedItems] | None = None
    ) -> jax.Array:
        """What the members read at each history's last item, side by side and divided by their number:
        [rows, segments, K * D]."""
        tables: Sequence[ProjectedItems | None] = table or [None] * len(self.encoders)
        return self._mean(lambda k, encoder, own: encoder.read(own, items, layout, _drawn(draws, k), tables[k]))

    def prefix_readouts(self, items: jax.Array, layout: Layout, draws: Draws | None = None) -> jax.Array:
        """The `readout` of every prefix of every history, in one pass where that is exact: [rows, tokens, K * D]."""
        return self._mean(lambda k, encoder, own: encoder.read_prefixes(own, items, layout, _drawn(draws, k)))

    def no_history(self, users: int) -> list[tuple[MixerState, ...]]:
        """The state of `prefix_step` before the first item of each user's history."""
        return [encoder.no_history(users) for encoder in self.encoders]

    def prefix_step(
        self, items: jax.Array, gaps: jax.Array, number: jax.Array, state: list[tuple[MixerState, ...]]
    ) -> tuple[jax.Array, list[tuple[MixerState, ...]]]:
        """The `readout` of histories that grow by one item: ([n, K * D], the state after it); see Encoder.step."""
        after = []

        def step(k, encoder, own):
            readout, left = encoder.step(own, items, gaps, number, state[k])
            after.append(left)
            return readout

        return self._mean(step), after

    def item_vectors(self, rows: jax.Array) -> jax.Array:
        """What readouts are multiplied with to score the items of these rows of the item table: [n, K * D]."""
        parts = zip(self.encoders, self._parts(rows), strict=True)
        return jnp.concatenate([encoder.item_vectors(own) for encoder, own in parts], axis=-1)

    def members(self, readout: jax.Array, vectors: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """(readouts [..., D], item vectors [n, D]) of each member, which learns by its own scores."""
        whole = readout * jnp.asarray(len(self.encoders), readout.dtype)
        return list(zip(self._parts(whole), self._parts(vectors), strict=True))

    def table_is_less_work(self, tokens: int) -> bool:
        """Whether projecting the item tables takes less work than projecting `tokens` tokens, and little memory."""
        rows = self.item_embedding.shape[0]
        return self.encoders[0].projecting_is_less_work(rows, tokens)

    def item_table(self) -> list[ProjectedItems]:
        """The first layer's input for every item and its projection, of each member."""
        parts = zip(self.encoders, self._parts(self.item_embedding[...]), strict=True)
        return [encoder.project(own) for encoder, own in parts]

    def _mean(self, read: Callable[[int, Encoder, jax.Array], jax.Array]) -> jax.Array:
        parts = self._parts(self.item_embedding[...])
        found = [read(k, encoder, own) for k, (encoder, own) in enumerate(zip(self.encoders, parts, strict=True))]
        whole = jnp.concatenate(found, axis=-1)
        return whole / jnp.asarray(len(found), whole.dtype)

    def _parts(self, whole: jax.Array) -> list[jax.Array]:
        return jnp.split(whole, len(self.encoders), axis=-1)


def _drawn(draws: Draws | None, number: int) -> Draws | None:
    return None if draws is None else draws.of_member(number)
