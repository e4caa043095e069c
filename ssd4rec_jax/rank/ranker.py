"""Ranks every user's held-out item among the whole catalogue."""
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from ssd4rec_jax.data.examples import ExampleIndex
from ssd4rec_jax.data.followers import Followers
from ssd4rec_jax.data.packing import PackedBatch, StepShape, choose_step_shape
from ssd4rec_jax.model.network import Network
from ssd4rec_jax.parallel.mesh import ITEM_EMBEDDING, token_multiple
from ssd4rec_jax.parallel.table_shard import TableShard
from ssd4rec_jax.rank.excluded import excluded_slots
from ssd4rec_jax.rank.metrics import ranking_metrics, ranks
from ssd4rec_jax.rank.recommend import TopK
from ssd4rec_jax.rank.scorer import Scorer
from ssd4rec_jax.reporter import Reporter

# On a CPU a step has about so many tokens for each device, because its arrays then stay near the caches. Steps of the
# size that training takes took 1.4 to 1.7 times as long for KuaiRand (docs/measurements.md).
CPU_TOKENS = 4096


class Ranker:
    """Ranks the target of every example among all items of the catalogue.

    Items that the user has seen stay in the ranking unless they are excluded; item 0 is never ranked. followers: see
    ssd4rec_jax.rank.scorer.Scorer.
    longest: examples that decide the shape of the packed steps, together with targets_per_step and tokens_per_row as in
      training, which on a CPU are upper limits. No history that is ranked later may be longer than their longest. With
      the test examples here, one compiled program serves both splits, because a user's test history is the validation
      history plus one item.
    """

    def __init__(
        self, network: Network, mesh: Mesh, longest: ExampleIndex, *,
        targets_per_step: int, tokens_per_row: int, followers: Followers | None = None,
        reporter: Reporter | None = None,
    ):
        self.scorer = Scorer(network, mesh, followers=followers, reporter=reporter)
        lengths = longest.lengths
        histories: float = targets_per_step
        if mesh.devices.flat[0].platform == 'cpu':
            tokens_per_row = min(tokens_per_row, max(CPU_TOKENS, 2 * int(lengths.max())))
            histories = min(histories, mesh.size * tokens_per_row // float(lengths.mean()))
        self.shape: StepShape = choose_step_shape(
            lengths, targets_per_step=histories, tokens_per_row=tokens_per_row, row_multiple=mesh.size,
            token_multiple=token_multiple(mesh),
        )
        self._tokens = int(lengths.sum())

    def ranks(
        self, params: dict, examples: ExampleIndex, *, exclude: Sequence[np.ndarray] | None = None
    ) -> np.ndarray:
        """The rank of each example's target, int64 [examples], from 1. Raises TrainingError for scores not finite.

        exclude: for each example, the ids of items that are left out of its ranking. A target that is itself left out
        has the rank 0, which stands for not found.
        """
        def arguments(batch: PackedBatch) -> tuple[np.ndarray, ...]:
            return (batch.targets,) if exclude is None else (batch.targets, excluded_slots(exclude, batch))

        return self._found(params, examples, ranks, arguments, exclude)[0]

    def ranks_and_lists(
        self, params: dict, examples: ExampleIndex, *, k: int, exclude: Sequence[np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`ranks`, and the k best items of each example, int32 [examples, k], from the same scores.

        The best item comes first; a list is filled up with 0 where fewer items are left. k is cut to the size of the
        catalogue.
        """
        def arguments(batch: PackedBatch) -> tuple[np.ndarray, ...]:
            return batch.targets, excluded_slots(exclude, batch)

        f = _RanksAndTopK(min(k, self.scorer.network.num_items))
        found, items, scores = self._found(params, examples, f, arguments, exclude)
        return found, np.where(np.isfinite(scores), items, 0)

    def _found(self, params, examples, f, arguments, exclude):
        """The results of f, of which the first are ranks: int64 [examples], judged as `ranks` says."""
        prepared = self.scorer.prepare(params, self._tokens)
        found, *others = self.scorer(
            prepared, examples, self.shape, f, arguments, about=self._cost(params, examples)
        )
        if not found.all():
            raise AssertionError(f'{np.sum(found == 0)} examples were not ranked')
        found = found.astype(np.int64)
        if examples.missed is not None:
            found[examples.missed] = self.scorer.network.num_items + 1
        if exclude is not None:
            found[[target in own for target, own in zip(examples.target, exclude, strict=True)]] = 0
        return found, *others

    def metrics(self, params: dict, examples: ExampleIndex) -> dict[str, float]:
        """HR, NDCG and MRR at 10 and 20, as means over all examples."""
        return ranking_metrics(self.ranks(params, examples))

    def _cost(self, params: dict, examples: ExampleIndex) -> str:
        items = self.scorer.network.num_items
        operations = 2 * len(examples) * items * params[ITEM_EMBEDDING].shape[1]
        return (
            f'evaluation: {len(examples):,} histories, each ranked exactly among {items:,} items, '
            f'{operations:.1e} FLOP of scores on {self.scorer.mesh.size} device(s)'
        )


@dataclasses.dataclass(frozen=True)
class _RanksAndTopK:
    """The function that a Scorer applies to rank the targets and to find the k best items as well."""

    k: int

    def __call__(
        self, scores: jax.Array, targets: jax.Array, excluded: jax.Array, *, shard: TableShard
    ) -> tuple[jax.Array, ...]:
        """Arguments as in `ranks`. Returns (rank int32 [n], items int32 [n, k], their scores, finite bool [n])."""
        rank, finite = ranks(scores, targets, excluded, shard=shard)
        items, best, _ = TopK(self.k)(scores, excluded, shard=shard)
        return rank, items, best, finite
