"""What a prepared data set holds, for people and for comparison with another preparation."""
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.examples import unseen
from ssd4rec_jax.data.prepare import bad_rows_file
from ssd4rec_jax.data.splits import Targets


def describe(dataset: SequenceDataset) -> dict[str, Any]:
    """Sizes, numbers of prediction targets, digests of the held-out items, and what preparation kept and left out.

    A digest is the sha256 of the lines 'user,item' of original ids, users ascending (as numbers if all of them are).
    """
    lengths = dataset.lengths
    split = dataset.held_out
    return {
        'users': dataset.num_users,
        'items': dataset.num_items,
        'interactions': dataset.num_interactions,
        'median_length': float(np.median(lengths)),
        'max_length': int(lengths.max()),
        'train_targets': int(np.maximum(split.train_stop - dataset.offsets[:-1] - 1, 0).sum()),
        'valid_targets': int((split.valid.stop - split.valid.start).sum()),
        'test_targets': int((split.test.stop - split.test.start).sum()),
        'test_items_sha256': _digest(dataset, split.test),
        'valid_items_sha256': _digest(dataset, split.valid),
        'protocol': split.protocol,
        **({'unseen_test_share': _unseen_share(dataset)} if split.unseen_is_missed else {}),
        **dataset.report,
        'time_unit': dataset.time_unit,
    }


def kept_lines(dataset: SequenceDataset, folder: Path) -> list[str]:
    """What was noticed, read, left out and kept; [] where the data was prepared before this was written down.

    folder: where the data set lies prepared.
    """
    report = dataset.report
    if not report:
        return []
    lengths = dataset.lengths
    dropped = report['dropped_by_user_rule'] + report['dropped_by_item_rule']
    span = f'{report["first_time"]} to {report["last_time"]}' if dataset.time_unit else 'no times, the order alone'
    kinds = ', '.join(f'{n:,}: {kind}' for kind, n in report['bad_kinds'].items())
    bad = f'{report["bad_rows"]:,} bad ({kinds}; listed in {bad_rows_file(folder)})' if report['bad_rows'] else '0 bad'
    split = dataset.held_out
    missed = []
    if split.unseen_is_missed:
        missed = [f'protocol: {split.protocol} ({_unseen_share(dataset):.1%} of the test targets)']
    return [
        *report['notes'],
        f'{report["rows"]:,} rows read, {bad}, {dropped:,} dropped by the {report["rules"]} '
        f'({report["dropped_by_user_rule"]:,} of rare users, {report["dropped_by_item_rule"]:,} of rare items)',
        f'kept {dataset.num_users:,} of {report["all_users"]:,} users, {dataset.num_items:,} of '
        f'{report["all_items"]:,} '
        f'items, {dataset.num_interactions:,} interactions, {span}; histories of {np.median(lengths):g} (median) to '
        f'{lengths.max():,}; {report["repeats"] / dataset.num_interactions:.1%} repeat an item of the same user',
        *missed,
    ]


def _unseen_share(dataset: SequenceDataset) -> float:
    """The share of test targets that are items which training never saw."""
    return float(unseen(dataset)[dataset.items[dataset.held_out.test.positions()]].mean())


def _digest(dataset: SequenceDataset, targets: Targets) -> str:
    users = dataset.user_ids[targets.users()].tolist()
    items = dataset.item_ids[dataset.items[targets.positions()] - 1].tolist()
    lines = list(zip(users, items, strict=True))
    try:
        lines.sort(key=lambda line: int(line[0]))
    except ValueError:
        lines.sort(key=lambda line: line[0])
    return hashlib.sha256(''.join(f'{user},{item}\n' for user, item in lines).encode()).hexdigest()
