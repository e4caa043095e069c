"""The items with the highest scores for given histories."""
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from ssd4rec_jax.data.examples import ExampleIndex
from ssd4rec_jax.data.features import Feature
from ssd4rec_jax.data.followers import Followers
from ssd4rec_jax.data.packing import StepShape
from ssd4rec_jax.model.network import Network
from ssd4rec_jax.parallel.table_shard import TableShard
from ssd4rec_jax.rank.excluded import excluded_slots, round_up, without
from ssd4rec_jax.rank.scorer import Scorer

TOKENS_PER_ROW = 8192
_LEAST_TOKENS, _LEAST_SLOTS = 64, 1


class TopItems:
    """Scores histories of internal item ids with fixed parameters, and ranks the catalogue for them, on any mesh.

    Calls of similar size share a compiled program: tokens, slots, k and the longest list of excluded items are rounded
    up to powers of two. shapes: the steps to choose from instead, the cheapest first, so that no other program is ever
    compiled; a history has to fit into the last one's rows. max_history: the number of newest items of a history that
    the network reads; 0 reads all of them. followers: see ssd4rec_jax.rank.scorer.Scorer.
    """

    def __init__(
        self, network: Network, mesh: Mesh, params: dict, *, max_history: int = 0, tokens_per_row: int = TOKENS_PER_ROW,
        followers: Followers | None = None, shapes: Sequence[StepShape] = (),
    ):
        self.network, self.max_history, self.tokens_per_row = network, max_history, tokens_per_row
        self.shapes = shapes
        self._scorer = Scorer(network, mesh, followers=followers)
        # The item table is projected once, for all later calls.
        self._prepared = self._scorer.prepare(params, tokens=np.iinfo(np.int64).max)

    def __call__(
        self, histories: Sequence[np.ndarray] | ExampleIndex, *, k: int, exclude: Sequence[np.ndarray] | None = None,
        allowed: np.ndarray | None = None, features: Mapping[str, Sequence[np.ndarray]] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items int32 [histories, k] and their scores float32 [histories, k].

        The best item comes first; equal scores are ordered by lower id. histories: integer arrays of item ids
        (1, 2, ...), none of them empty, or those of prepared data as the network reads them, with its features. k is
        cut to the size of the catalogue. exclude: for each history, the ids of items that get the score -inf and so
        come last. allowed: bool [items + 1]; items that are not allowed get the
        score -inf for all histories. features: {name: for each history, a number for each of its items} that the
        network reads beside the items. Raises TrainingError where a score is not finite.
        """
        k = min(k, self.network.num_items)
        examples = self._examples(histories, features or {})
        items, scores = self._scorer(
            self._prepared, examples, self._shape(examples.lengths), TopK(min(round_up(k), self.network.num_items)),
            lambda batch: (excluded_slots(exclude, batch),), per_item=() if allowed is None else (allowed,),
        )
        return items[:, :k], scores[:, :k]

    def scores(
        self, histories: Sequence[np.ndarray], items: np.ndarray, *,
        features: Mapping[str, Sequence[np.ndarray]] | None = None,
    ) -> np.ndarray:
        """The scores float32 [histories, n] of some items: integers [n], distinct internal ids; features as above."""
        examples = self._examples(histories, features or {})
        place = np.full(self.network.num_items + 1, len(items), np.int32)
        place[items] = np.arange(len(items))
        (found,) = self._scorer(
            self._prepared, examples, self._shape(examples.lengths), ScoresOf(len(items)), lambda _: (),
            per_item=(place,),
        )
        return found

    def vectors(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """The network's readouts float32 [histories, D]; their dot products with `item_vectors` are the scores.

        Where the network has a seen-item term, this holds for items that the history does not hold. The follower term
        comes on top of it.
        """
        examples = self._examples(histories, {})
        return self._scorer.readouts(self._prepared, examples, self._shape(examples.lengths))

    def _examples(
        self, histories: Sequence[np.ndarray] | ExampleIndex, features: Mapping[str, Sequence[np.ndarray]]
    ) -> ExampleIndex:
        if isinstance(histories, ExampleIndex):
            return histories
        newest = slice(-self.max_history if self.max_history else None, None)
        read = [h[newest] for h in histories]
        lengths = np.asarray([len(h) for h in read], np.int64)
        stop = np.cumsum(lengths)
        return ExampleIndex(
            items=np.concatenate(read).astype(np.int32), start=stop - lengths, stop=stop,
            target=np.zeros(len(read), np.int32), cut=0,
            features={name: Feature(np.concatenate([v[newest] for v in each])) for name, each in features.items()},
        )

    def _shape(self, lengths: np.ndarray) -> StepShape:
        """The shape of the packed steps for histories of these lengths, rounded up to a size class."""
        if self.shapes:
            return next((shape for shape in self.shapes if shape.holds(lengths)), self.shapes[-1])
        rows = self._scorer.mesh.size
        tokens = min(-(-int(lengths.sum()) // rows), self.tokens_per_row)
        tokens = round_up(max(tokens, int(lengths.max()), _LEAST_TOKENS))
        # An unused slot costs a row of scores, and a missing one leaves tokens of the row empty.
        slots = round_up(min(-(-len(lengths) // rows), math.ceil(tokens / lengths.mean())))
        return StepShape(rows, tokens, min(max(slots, _LEAST_SLOTS), tokens))


@dataclasses.dataclass(frozen=True)
class TopK:
    """The function that a Scorer applies to find the k best items of each row of scores."""

    k: int

    def __call__(
        self, scores: jax.Array, excluded: jax.Array, *, shard: TableShard, per_item: tuple[jax.Array, ...] = ()
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns (items int32 [n, k], scores float32 [n, k], finite bool [n]).

        scores: float32 [n, held], the scores of this device's items. excluded: int32 [n, m], ids of items that get the
        score -inf, filled up with 0. per_item: empty, or one bool [held] that is False for this device's items that are
        not allowed; these get the score -inf too. The best item comes first, equal scores are ordered by lower id, and
        item 0 never ranks. finite says whether the scores of all real items of the row are finite.
        """
        chex.assert_shape(scores, (None, shard.held))
        item = shard.first + jnp.arange(scores.shape[1], dtype=jnp.int32)
        real = (item > 0) & (item < shard.rows)
        finite = shard.sum(jnp.sum(~jnp.isfinite(scores) & real, axis=1, dtype=jnp.int32)) == 0
        ranked = functools.reduce(jnp.logical_and, per_item, real)
        scores = without(jnp.where(ranked, scores, -jnp.inf), excluded, shard)
        # Among equal scores top_k takes the first. The parts of the table are in order, so the first has the lowest id.
        best, at = lax.top_k(scores, min(self.k, scores.shape[1]))
        if shard.shards > 1:
            best, items = shard.gather(best, axis=1), shard.gather(item[at], axis=1)
            best, at = lax.top_k(best, self.k)
            return jnp.take_along_axis(items, at, axis=1), best, finite
        return item[at], best, finite


@dataclasses.dataclass(frozen=True)
class ScoresOf:
    """The function that a Scorer applies to pick the scores of `chosen` items."""

    chosen: int

    def __call__(
        self, scores: jax.Array, *, shard: TableShard, per_item: tuple[jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (scores float32 [n, chosen], finite bool [n]).

        scores: float32 [n, held]. per_item: one int32 [held], the place of each of this device's items among the
        chosen; `chosen` where it is not among them.
        """
        # Padding rows of the table come with the place 0, which belongs to a real item.
        place = jnp.where(shard.first + jnp.arange(shard.held) < shard.rows, per_item[0], self.chosen)
        own = jnp.zeros((len(scores), self.chosen), scores.dtype).at[:, place].set(scores, mode='drop')
        found = shard.sum(own)
        return found, jnp.all(jnp.isfinite(found), axis=1)
