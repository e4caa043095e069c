"""A generated log whose next item only the order of several items reveals."""
import dataclasses
import hashlib

import numpy as np

from ssd4rec_jax.data.interactions import Interactions


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Users who pursue a few interests in turn.

    An interest is a fixed cycle of chain_length items. A user has two to four interests, popular ones more often
    (interest r with weight 1 / r), and visits them round and round: A B C A B C ... Each visit shows the next item of
    that interest's cycle, so with p interests the next item is the successor of the item p steps back. The last item
    alone tells next to nothing, and popularity little. A share `noise` of the rows shows an item drawn by popularity
    instead.

    Deterministic in its fields. name and content_hash are what preparation wants of any source.
    """

    seed: int = 0
    num_users: int = 3000
    num_interests: int = 24
    chain_length: int = 20
    min_length: int = 12
    max_length: int = 40
    noise: float = 0.1

    name = 'synthetic'

    def content_hash(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def read(self) -> Interactions:
        """Rows of one user after another in time order; ids and times are int64."""
        rng = np.random.default_rng(self.seed)
        lengths = rng.integers(self.min_length, self.max_length + 1, self.num_users)
        users = np.repeat(np.arange(self.num_users), lengths)
        times = np.arange(len(users)) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # 0, 1, ... for each user

        popularity = 1 / np.arange(1, self.num_interests + 1)
        # Gumbel noise on log weights, sorted: a weighted draw without replacement for every user at once.
        gumbel = np.log(popularity) + rng.gumbel(size=(self.num_users, self.num_interests))
        interests = np.argsort(-gumbel, axis=1)[:, :4]
        entry = rng.integers(0, self.chain_length, interests.shape)  # where a user enters each interest's cycle
        num_own = rng.integers(2, 5, self.num_users)[users]
        visit, turn = divmod(times, num_own)
        item = self._item(interests[users, turn], entry[users, turn] + visit)

        drawn = self._item(
            rng.choice(self.num_interests, len(users), p=popularity / popularity.sum()),
            rng.integers(0, self.chain_length, len(users)),
        )
        item = np.where(rng.random(len(users)) < self.noise, drawn, item)
        original_ids = rng.permutation(self.num_interests * self.chain_length) + 1  # ids tell nothing
        return Interactions(users=users + 1, items=original_ids[item], times=times, source='synthetic')

    def _item(self, interest: np.ndarray, position: np.ndarray) -> np.ndarray:
        return interest * self.chain_length + position % self.chain_length
