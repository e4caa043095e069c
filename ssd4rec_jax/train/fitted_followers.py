"""How much followers weigh beside a trained network: chosen by its ranking of the validation targets.

How much the counts add depends on the log: on Beauty they are worth a tenth of NDCG@10, on MovieLens nothing
(docs/decisions/ranking-quality.md). They do not touch training, so that one trained network can be ranked with many
weights.
"""
import numpy as np

from ssd4rec_jax.data.examples import ExampleIndex
from ssd4rec_jax.data.followers import Followers
from ssd4rec_jax.rank.ranker import Ranker
from ssd4rec_jax.train.early_stopping import STOPPING_METRIC

WEIGHTS = 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0
AT_MOST = 8192  # targets that are ranked with each weight


def fitted_weight(
    ranker: Ranker, params: dict, examples: ExampleIndex, counted: Followers, weight: float
) -> tuple[float, Followers | None, dict[float, float]]:
    """(the weight whose NDCG@10 is best, the smallest of equal ones; followers of that weight; NDCG@10 by weight).

    ranker: afterwards it ranks with the chosen weight. params: placed on its mesh. examples: the targets, of which
    AT_MOST are taken, spread evenly. counted: as count_followers gives them. weight: one that is tried beside WEIGHTS.
    """
    taken = np.zeros(len(examples), bool)
    taken[np.linspace(0, len(examples) - 1, min(len(examples), AT_MOST)).astype(int)] = True
    some, found = examples.of(taken), {}
    for tried in sorted({*WEIGHTS, weight}):
        ranker.scorer.rank_with(counted.times(tried))
        found[tried] = ranker.metrics(params, some)[STOPPING_METRIC]
    best = max(found, key=lambda tried: (found[tried], -tried))
    chosen = counted.times(best)
    ranker.scorer.rank_with(chosen)
    return best, chosen, found
