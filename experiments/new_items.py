"""How well items that a model was not trained on are recommended, by vectors from neighbours and from features.

    python -m experiments.new_items --dataset=amazon-beauty --data_dir=DIR [--figures=FILE] [--set=train.max_epochs=8]

A random 5% of the items are taken out of the log, and preset=auto is fitted on the rest. Each of them then gets a
vector from the items that users did just before and after it in its first FIRST interactions. Each later interaction
of a user with one of them is a question: what the user did before is the history, and the item is ranked among all
items, seen ones included, and among the new ones alone. Items that are not in FIRST interactions get no vector and ask
nothing.

The feature columns are made up, for the logs have none. Items are put into GROUPS groups by k-means of their
coordinates in the first 32 singular vectors of the log's matrix of users and items, new items and all their
interactions included, as a genre would say beforehand what an item is. `category` is the group, but of a fifth of the
items a random one; `title` is three words of the group's own 30 and two of 200 that all groups share.
"""
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from absl import flags
from rich.console import Console
from scipy.cluster.vq import kmeans2
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds

from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.config_flags import SET
from ssd4rec_jax.commands.dataset_flags import DATASET, prepared_dataset
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.files import write_json
from ssd4rec_jax.presets import default_config
from ssd4rec_jax.recommender import Recommender
from ssd4rec_jax.show.terminal import Terminal

SHARE, FIRST, GROUPS, K = 0.05, 5, 50, 10

_JSON = flags.DEFINE_string('figures', None, 'File to write the figures to.')
_SEED = flags.DEFINE_integer('seed', 1, 'Decides which items are new, and the feature columns.', lower_bound=0)


def main() -> int:
    """Run the command; returns its exit code."""
    dataset, _ = prepared_dataset(default_config(DATASET.value))
    rng = np.random.default_rng(_SEED.value)
    new = np.zeros(dataset.num_items + 1, bool)
    new[rng.choice(np.arange(1, dataset.num_items + 1), round(SHARE * dataset.num_items), replace=False)] = True
    beside, questions = _questions(dataset, new)
    settings = dict(override.split('=', 1) for override in SET.value)
    features = _features(dataset, rng)
    with tempfile.TemporaryDirectory() as folder:
        rec = Recommender(settings=settings).fit(
            _log(dataset, ~new[dataset.items]), workdir=folder, reporter=Terminal()
        )
        there = Recommender.load(folder)
    figures: dict[str, Any] = {
        'dataset': DATASET.value, 'items': dataset.num_items, 'new': len(beside), 'questions': len(questions),
        'chance_among_new': min(1.0, K / len(beside)),
    }
    figures['neighbours'] = _hit_rates(rec.add_items(beside=beside), beside, questions)
    wanted = features.filter(pl.col('item').is_in([*there.items, *beside]))
    figures['features'] = _hit_rates(there.add_items(features=wanted), beside, questions)
    Console(highlight=False, soft_wrap=True).print(figures)
    if _JSON.value:
        write_json(Path(_JSON.value), figures)
    return 0


def _name(item: int) -> str:
    return f'i{item}'


def _log(dataset: SequenceDataset, kept: np.ndarray) -> pl.DataFrame:
    """The interactions `kept`, bool [interactions], in order."""
    users = np.repeat(np.arange(dataset.num_users), dataset.lengths)
    return pl.DataFrame({
        'user': users[kept], 'item': [_name(item) for item in dataset.items[kept].tolist()],
        'time': np.flatnonzero(kept),
    })


def _questions(dataset: SequenceDataset, new: np.ndarray) -> tuple[dict[str, list[str]], list[tuple[list[str], str]]]:
    """({new item: items beside it in its first interactions}, [(history, new item), ...]).

    new: bool [items + 1]. Interactions of an item are in order of time, those at the same time in order of users.
    """
    items, times = np.asarray(dataset.items), np.asarray(dataset.times)
    user = np.repeat(np.arange(dataset.num_users), dataset.lengths)
    places = np.flatnonzero(new[items])
    places = places[np.argsort(times[places], kind='stable')]
    seen: dict[int, int] = {}
    neighbours: dict[str, list[str]] = {}
    later = []
    for place in places.tolist():
        item = int(items[place])
        seen[item] = seen.get(item, 0) + 1
        if seen[item] > FIRST:
            later.append(place)
            continue
        start, stop = dataset.offsets[user[place]], dataset.offsets[user[place] + 1]
        known = np.flatnonzero(~new[items[start:stop]]) + start
        at = int(np.searchsorted(known, place))
        neighbours.setdefault(_name(item), []).extend(_name(i) for i in items[known[max(at - 1, 0):at + 1]].tolist())
    beside = {item: found for item, found in neighbours.items() if found and seen[int(item[1:])] > FIRST}
    questions = []
    for place in later:
        before = [_name(i) for i in items[dataset.offsets[user[place]]:place].tolist()]
        history = [item for item in before if item in beside or not new[int(item[1:])]]
        if history and _name(int(items[place])) in beside:
            questions.append((history, _name(int(items[place]))))
    return beside, questions


def _hit_rates(rec: Recommender, new: dict[str, list[str]], questions: list[tuple[list[str], str]]) -> dict[str, float]:
    """HR@K of the questions among all items and among the new ones."""
    names = rec.items
    number = {name: n for n, name in enumerate(names)}
    columns = np.asarray([number[name] for name in new])
    hits = {'all': 0, 'among_new': 0}
    for start in range(0, len(questions), 1024):
        part = questions[start:start + 1024]
        scores = rec.user_vectors([history for history, _ in part]) @ rec.item_vectors.T
        target = np.asarray([number[item] for _, item in part])
        own = scores[np.arange(len(part)), target][:, None]
        hits['all'] += int(((scores > own).sum(axis=1) < K).sum())
        hits['among_new'] += int(((scores[:, columns] > own).sum(axis=1) < K).sum())
    return {f'HR@{K} {name}': count / len(questions) for name, count in hits.items()}


def _features(dataset: SequenceDataset, rng: np.random.Generator) -> pl.DataFrame:
    """The columns item, category and title of every item."""
    user = np.repeat(np.arange(dataset.num_users), dataset.lengths)
    matrix = csr_array(
        (np.ones(len(user), np.float32), (user, np.asarray(dataset.items) - 1)),
        shape=(dataset.num_users, dataset.num_items),
    )
    _, _, directions = svds(matrix, k=32, rng=rng)
    points = directions.T / np.maximum(np.linalg.norm(directions.T, axis=1, keepdims=True), 1e-12)
    _, group = kmeans2(points, GROUPS, minit='++', rng=rng)
    said = np.where(rng.random(len(group)) < 0.2, rng.integers(0, GROUPS, len(group)), group)
    titles = [
        ' '.join([*(f'g{own}w{n}' for n in rng.integers(0, 30, 3)), *(f'w{n}' for n in rng.integers(0, 200, 2))])
        for own in group.tolist()
    ]
    return pl.DataFrame({
        'item': [_name(item) for item in range(1, dataset.num_items + 1)], 'category': [f'c{c}' for c in said.tolist()],
        'title': titles,
    })


if __name__ == '__main__':
    run(main)
