"""Full ranking of every user's held-out item."""
import numpy as np

from ssd4rec_jax.data.examples import ExampleIndex
from ssd4rec_jax.data.packing import PackedBatch, StepShape, choose_step_shape
from ssd4rec_jax.model.network import Network
from ssd4rec_jax.parallel.mesh import ITEM_EMBEDDING
from ssd4rec_jax.rank.metrics import ranking_metrics, ranks
from ssd4rec_jax.rank.scorer import Scorer
from ssd4rec_jax.reporter import Reporter


class Ranker:
    """Ranks the target of every example over the whole catalogue.

    Seen items stay in the ranking and item 0 never ranks. longest: the examples that size the packed steps, as
    targets_per_step and tokens_per_row do in training; no history ranked later may be longer than theirs. So one
    compiled program serves both splits: a user's test history is the validation history and one item more.
    """

    def __init__(
        self, network: Network, mesh, longest: ExampleIndex, *,
        targets_per_step: int, tokens_per_row: int, reporter: Reporter | None = None,
    ):
        self.scorer = Scorer(network, mesh, reporter=reporter)
        self.shape: StepShape = choose_step_shape(
            longest.lengths, targets_per_step=targets_per_step, tokens_per_row=tokens_per_row,
            row_multiple=mesh.size,
        )
        self._tokens = int(longest.lengths.sum())

    def ranks(self, params: dict, examples: ExampleIndex) -> np.ndarray:
        """int64 [examples], rank from 1 of each example's target; TrainingError where a score is not finite."""
        prepared = self.scorer.prepare(params, self._tokens)
        about = self._cost(params, examples)
        (found,) = self.scorer(prepared, examples, self.shape, ranks, _targets, about=about)
        if not found.all():
            raise AssertionError(f'{np.sum(found == 0)} examples were not ranked')
        found = found.astype(np.int64)
        return found if examples.missed is None else np.where(examples.missed, self.scorer.network.num_items + 1, found)

    def metrics(self, params: dict, examples: ExampleIndex) -> dict[str, float]:
        """HR, NDCG and MRR at 10 and 20 over all examples."""
        return ranking_metrics(self.ranks(params, examples))

    def _cost(self, params: dict, examples: ExampleIndex) -> str:
        items = self.scorer.network.num_items
        operations = 2 * len(examples) * items * params[ITEM_EMBEDDING].shape[1]
        return (
            f'evaluation: {len(examples):,} histories, each ranked exactly among {items:,} items, '
            f'{operations:.1e} FLOP of scores on {self.scorer.mesh.size} device(s)'
        )


def _targets(batch: PackedBatch) -> tuple[np.ndarray]:
    return (batch.targets,)
