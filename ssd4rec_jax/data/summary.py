"""The figures by which a prepared data set is compared with another preparation."""
import hashlib

import numpy as np

from ssd4rec_jax.data.dataset import SequenceDataset


def describe(dataset: SequenceDataset) -> dict:
    """Sizes, numbers of prediction targets, and digests of the held-out items.

    A digest is the sha256 of the lines 'user,item' of original ids, users ascending (as numbers if all of them are).
    """
    lengths = dataset.lengths
    return {
        'users': dataset.num_users,
        'items': dataset.num_items,
        'interactions': dataset.num_interactions,
        'median_length': float(np.median(lengths)),
        'max_length': int(lengths.max()),
        'train_targets': int((lengths - 3).sum()),
        'valid_targets': dataset.num_users,
        'test_targets': dataset.num_users,
        'test_items_sha256': _digest(dataset, 1),
        'valid_items_sha256': _digest(dataset, 2),
    }


def _digest(dataset: SequenceDataset, from_end: int) -> str:
    items = dataset.item_ids[dataset.items[dataset.offsets[1:] - from_end] - 1].tolist()
    lines = dict(zip(dataset.user_ids.tolist(), items))
    try:
        users = sorted(lines, key=int)
    except ValueError:
        users = sorted(lines)
    return hashlib.sha256(''.join(f'{user},{lines[user]}\n' for user in users).encode()).hexdigest()
