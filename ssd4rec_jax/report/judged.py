"""What a run's best parameters do with held-out items: metrics with intervals, lists of users, items that are near."""
import dataclasses
from typing import Any

import numpy as np
import polars as pl

from ssd4rec_jax.answers import Answers
from ssd4rec_jax.rank.baselines import BASELINES
from ssd4rec_jax.rank.evaluation import GROUPINGS, Evaluation, Evaluator
from ssd4rec_jax.rank.metrics import CUTOFFS
from ssd4rec_jax.rank.report import metric_frame
from ssd4rec_jax.run.saved_run import SavedRun

SHOWN, LISTED, NEAREST, NEWEST = 10, 10, 5, 6  # users and items, the items of a list, near items, items of a history
PROTOCOLS = {'in': False, 'out': True}  # whether what a user has seen is left out of the ranking


@dataclasses.dataclass(frozen=True)
class ShownUser:
    """A user, in original ids: the newest items of the history of `length` items, the held-out item, the best items.

    rank: of the held-out item in the ranking of `items`; 0 where it is left out, having been seen.
    """

    user: Any
    length: int
    newest: list[Any]
    target: Any
    rank: int
    items: list[Any]


@dataclasses.dataclass(frozen=True)
class ShownItem:
    """An item that occurs `count` times, in original ids, and the nearest ones with their cosines."""

    item: Any
    count: int
    near: list[tuple[Any, float]]


@dataclasses.dataclass(frozen=True)
class Judged:
    """metrics: {'in' or 'out': {'' for the model, or a baseline: metric, value, low, high}}, of the test split.

    by: {one of GROUPINGS: from, to, users, metric, value, low, high}. lists: figures of the lists that users are shown.
    seen_targets: the share of held-out items that the user had seen before. seen_out: whether the users' lists leave
    out what they have seen. All but items is empty where the model keeps no histories.
    """

    metrics: dict[str, dict[str, pl.DataFrame]]
    by: dict[str, pl.DataFrame]
    lists: dict[str, float]
    seen_targets: float
    seen_out: bool
    users: list[ShownUser]
    items: list[ShownItem]


def judge(saved: SavedRun) -> Judged:
    """Evaluate a run's best parameters on the test split, with seen items in and out."""
    items = _items(saved)
    dataset = saved.dataset
    if not dataset.num_users:
        return Judged({}, {}, {}, 0.0, False, [], items)
    evaluator = Evaluator(saved.config, dataset, saved.network, saved.mesh, 'test', followers=saved.followers)
    longest = min(max(CUTOFFS), dataset.num_items)
    found = {
        name: evaluator.evaluate(saved.params, longest_list=longest, seen_out=out) for name, out in PROTOCOLS.items()
    }
    metrics = {name: {'': found[name].metrics(CUTOFFS)} for name in PROTOCOLS}
    for name, out in PROTOCOLS.items():
        for baseline, ranks in BASELINES.items():
            metrics[name][baseline] = metric_frame(
                ranks(dataset, 'test', seen_out=out), CUTOFFS, users=found[name].users
            )
    repeats = found['out'].seen_targets > 0  # Where users come back to items, a list has to offer them.
    shown = found['in' if repeats else 'out']
    return Judged(
        metrics, {name: found['in'].grouped(name, CUTOFFS) for name in GROUPINGS},
        shown.list_metrics([k for k in CUTOFFS if k <= longest]), found['out'].seen_targets, not repeats,
        _users(saved, shown, longest), items,
    )


def _users(saved: SavedRun, shown: Evaluation, longest: int) -> list[ShownUser]:
    """Users of short to long histories."""
    dataset, examples = saved.dataset, shown.examples
    by_length = np.argsort(examples.lengths, kind='stable')
    chosen = by_length[np.unique(np.linspace(0, len(by_length) - 1, SHOWN).round().astype(int))]

    def ids(items: np.ndarray) -> list[Any]:
        return dataset.item_ids[np.asarray(items, np.int64) - 1].tolist()

    users = []
    for number in chosen.tolist():
        start, stop, best = examples.start[number], examples.stop[number], shown.lists[number, :min(LISTED, longest)]
        users.append(ShownUser(
            dataset.user_ids[shown.users[[number]]].tolist()[0], int(stop - start),
            ids(examples.items[max(start, stop - NEWEST):stop]), ids(examples.target[[number]])[0],
            int(shown.ranks[number]), ids(best[best > 0]),
        ))
    return users


def _items(saved: SavedRun) -> list[ShownItem]:
    """The items that occur most."""
    answers, counts = Answers(saved), np.asarray(saved.item_counts)
    most = np.argsort(-counts[1:], kind='stable')[:SHOWN]
    found = []
    for item, count in zip(answers.item_ids.gather(most).to_list(), counts[most + 1].tolist(), strict=True):
        near = answers.similar(item, NEAREST)
        found.append(ShownItem(item, count, list(zip(near['item'].to_list(), near['cosine'].to_list(), strict=True))))
    return found
