"""The seen-item term as a loop over the items of a history, to compare with."""
import jax.numpy as jnp
import numpy as np

AGES = (1, 2, 3, 5, 9, 17, 33, 65)
COUNTS = (1, 2, 3, 5)


def added_by_hand(histories, age, count, columns):
    """What is added to the scores of the items 0 .. columns - 1 after each history: [histories, columns]."""
    buckets = np.full((len(histories), columns, 2), -1)
    for own, history in zip(buckets, histories, strict=True):
        for item in set(history):
            ago = len(history) - max(at for at, read in enumerate(history) if read == item)
            times = history.count(item)
            own[item] = np.searchsorted(AGES, ago, 'right') - 1, np.searchsorted(COUNTS, times, 'right') - 1
    of_age, of_count = buckets[..., 0], buckets[..., 1]
    return jnp.where(of_age >= 0, jnp.asarray(age)[of_age] + jnp.asarray(count)[of_count], 0.0)


def histories_of(batch):
    """{(row, slot): its items} of a packed batch."""
    return {
        (r, s): batch.items[r, batch.starts[r, s]:batch.starts[r, s] + batch.lengths[r, s]].tolist()
        for r, s in np.argwhere(batch.lengths > 0)
    }
