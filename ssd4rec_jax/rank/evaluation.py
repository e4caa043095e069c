"""What is said of a model on held-out items: ranks with seen items in or out, their metrics, and lists of items."""
import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl
from jax.sharding import Mesh

from ssd4rec_jax.config.plugs import features_read
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import SequenceDataset, with_features
from ssd4rec_jax.data.examples import ExampleIndex, test_examples, valid_examples
from ssd4rec_jax.data.followers import Followers
from ssd4rec_jax.model.network import Network
from ssd4rec_jax.rank.baselines import training_counts
from ssd4rec_jax.rank.ranker import Ranker
from ssd4rec_jax.rank.report import grouped, list_metrics, metric_frame, set_metric_frame

SPLITS = 'test', 'valid'
GROUPINGS = 'history_length', 'item_popularity'
_EXAMPLES = {'test': test_examples, 'valid': valid_examples}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The ranks of the held-out items of a split among all items, or among those that the user has not seen yet.

    examples: the histories that were read and their targets. users: int64 [targets], internal ids of their users.
    ranks: int64 [targets] from 1; 0 where the target is itself left out because the user has seen it.
    lists: int32 [targets, longest list], the best items first; 0 where a list is short.
    counts: int64 [items + 1], how often each item occurs in training.
    """

    examples: ExampleIndex
    users: np.ndarray
    ranks: np.ndarray
    lists: np.ndarray
    counts: np.ndarray

    @property
    def seen_targets(self) -> float:
        """The share of targets that were left out as seen, which count as not found."""
        return float(np.mean(self.ranks == 0))

    def metrics(self, cutoffs: Sequence[int]) -> pl.DataFrame:
        """The columns metric, value, low, high: HR, NDCG and MRR with 95% bootstrap intervals.

        HR, NDCG and MRR are means over held-out items, each predicted from all that the user did before it. Where a
        user has several, recall and MAP follow, of one list: the one that is shown before the first of them.
        """
        frame = metric_frame(self.ranks, cutoffs, users=self.users)
        _, first, each = np.unique(self.users, return_index=True, return_inverse=True)
        if len(first) == len(self.users):
            return frame
        order = np.argsort(each, kind='stable')
        held_out = np.split(self.examples.target[order], np.flatnonzero(np.diff(each[order])) + 1)
        return pl.concat([frame, set_metric_frame(self.lists[first], held_out, cutoffs)])

    def list_metrics(self, cutoffs: Sequence[int]) -> dict[str, float]:
        """Coverage, Gini index, novelty and tail share of the lists; no cutoff may be above their length."""
        return list_metrics(self.lists, self.counts, cutoffs)

    def values(self, grouping: str) -> np.ndarray:
        """int64 [targets], one of GROUPINGS: the items before each target, or how often it occurs in training."""
        return {'history_length': self.examples.lengths, 'item_popularity': self.counts[self.examples.target]}[grouping]

    def grouped(self, grouping: str, cutoffs: Sequence[int]) -> pl.DataFrame:
        """`metrics` of each quarter of the targets by one of GROUPINGS, after the columns from, to, users."""
        return grouped(self.ranks, self.values(grouping), cutoffs, users=self.users)


class Evaluator:
    """Evaluates one model on one split, as often as is asked."""

    def __init__(
        self, config: RunConfig, dataset: SequenceDataset, network: Network, mesh: Mesh, split: str, *,
        followers: Followers | None = None,
    ):
        dataset = with_features(dataset, features_read(config.model))
        self._dataset = dataset
        max_history = config.data.max_history
        self.examples = _EXAMPLES[split](dataset, max_history=max_history)
        self._whole = _EXAMPLES[split](dataset)
        # The test histories are the longest, so one compiled program serves both splits.
        self.ranker = Ranker(
            network, mesh, test_examples(dataset, max_history=max_history),
            targets_per_step=config.train.targets_per_step, tokens_per_row=config.data.tokens_per_row,
            followers=followers,
        )

    @property
    def users(self) -> np.ndarray:
        """int64 [targets], internal ids of the users of the targets."""
        return np.searchsorted(self._dataset.offsets, self._whole.stop, side='right') - 1

    @property
    def counts(self) -> np.ndarray:
        """int64 [items + 1], how often each item occurs in training."""
        return training_counts(self._dataset)

    def ranks(self, params: dict, *, seen_out: bool) -> np.ndarray:
        """The ranks of an Evaluation alone. params: placed on the mesh or whole. seen_out: leave out what a user has
        seen: all of the history before the target, also what max_history cuts off."""
        return self.ranker.ranks(params, self.examples, exclude=self._seen() if seen_out else None)

    def evaluate(self, params: dict, *, longest_list: int, seen_out: bool) -> Evaluation:
        """`ranks`, and lists of longest_list items."""
        ranks, lists = self.ranker.ranks_and_lists(
            params, self.examples, k=longest_list, exclude=self._seen() if seen_out else None
        )
        return Evaluation(self.examples, self.users, ranks, lists, self.counts)

    def _seen(self) -> list[np.ndarray]:
        """What the user of each target has done before it."""
        whole = self._whole
        return [whole.items[start:stop] for start, stop in zip(whole.start, whole.stop, strict=True)]
