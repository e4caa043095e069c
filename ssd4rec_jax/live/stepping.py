"""Sessions that carry the network's state: an event costs one step, whatever came before it."""
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from ssd4rec_jax.data.followers import Followers
from ssd4rec_jax.errors import TrainingError
from ssd4rec_jax.live.session import Session
from ssd4rec_jax.model.network import Network
from ssd4rec_jax.model.seen import Seen
from ssd4rec_jax.parallel.table_shard import TableShard
from ssd4rec_jax.rank.excluded import round_up
from ssd4rec_jax.rank.followers import NEWEST
from ssd4rec_jax.rank.recommend import ScoresOf, TopK
from ssd4rec_jax.rank.scorer import of_scores

# Programs are compiled for these numbers of sessions, and of events of each; calls are filled up to the next.
SESSIONS, EVENTS = (1, 4, 16, 64), (1, 8, 64)
_HELD, _GROWTH = 512, 8  # and for 512, 4096, ... distinct items that the sessions of a call hold


class Stepping:
    """Steps and scores sessions on one device, which holds the whole item table.

    sessions, events: the numbers that programs are compiled for, in ascending order.
    """

    def __init__(
        self, network: Network, params: dict, followers: Followers | None, device: jax.Device,
        sessions: tuple[int, ...] = SESSIONS, events: tuple[int, ...] = EVENTS,
    ):
        self.network, self._sessions, self._events = network, sessions, events
        self._params, self._followers = jax.device_put((params, followers), device)
        model = network.bind(self._params)
        empty = model.no_history(1)
        zero = jnp.zeros(1, jnp.int32)
        readout, _ = jax.eval_shape(model.prefix_step, zero, jnp.zeros(1), zero, empty)
        flat, unravel = ravel_pytree(jax.tree.map(lambda a: a[0], empty))
        # On the host both have the widest dtype of the state, which holds the others without rounding.
        self.empty = np.asarray(flat), np.zeros(readout.shape[1], flat.dtype)
        self._extend = jax.jit(functools.partial(_extend, network, jax.vmap(unravel)))
        self._score = jax.jit(functools.partial(_score, network, readout.dtype), static_argnames='f')

    def extended(
        self, sessions: Sequence[Session], items: Sequence[np.ndarray], gaps: Sequence[np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """(state [S], readout [D]) of each session after further events; the sessions stay as they are.

        items, gaps: for each session int32 and float32 [events]; at least one event.
        """
        if not sessions:
            return []
        order = np.argsort([len(own) for own in items], kind='stable')  # Sessions of like numbers go together.
        found: list[tuple[np.ndarray, np.ndarray]] = [self.empty] * len(sessions)
        for part in np.split(order, np.arange(self._sessions[-1], len(order), self._sessions[-1])):
            states, readouts = self._extended(*([each[n] for n in part] for each in (sessions, items, gaps)))
            for row, n in enumerate(part):
                found[n] = states[row].copy(), readouts[row].copy()  # A view would keep the whole part in memory.
        return found

    def _extended(self, sessions, items, gaps):
        rows, most = _size(len(sessions), self._sessions), max(map(len, items))
        states, readouts = (
            _rows([getattr(s, name) for s in sessions], rows) for name in ('state', 'readout')
        )
        number = _rows([np.int32(s.length) for s in sessions], rows)
        start = 0
        while start < most:
            events = _size(min(most - start, self._events[-1]), self._events)
            read, before = (
                _rows([_filled(own[start:start + events], events) for own in each], rows) for each in (items, gaps)
            )
            left = _rows([np.int32(len(own) - start) for own in items], rows)
            states, readouts = self._extend(self._params, states, readouts, read, before, number + start, left)
            start += events
        return np.asarray(states), np.asarray(readouts)

    def top(
        self, sessions: Sequence[Session], *, k: int, exclude: Sequence[np.ndarray] | None, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As TopItems: (items int32 [sessions, k], scores float32 [sessions, k]); TrainingError likewise."""
        left_out: Sequence[np.ndarray] = [np.zeros(0, np.int32)] * len(sessions) if exclude is None else exclude
        width, ranks = round_up(max(map(len, left_out))), TopK(min(round_up(k), self.network.num_items))
        allowed_items = () if allowed is None else (allowed,)
        items, scores = self._scored(
            ranks, sessions, lambda part, rows: (_rows([_filled(own, width) for own in left_out[part]], rows),),
            allowed_items,
        )
        return items[:, :k], scores[:, :k]

    def scores(self, sessions: Sequence[Session]) -> np.ndarray:
        """float32 [sessions, items], the scores of all items; TrainingError where one is not finite."""
        items = self.network.num_items
        place = np.append(np.int32(items), np.arange(items, dtype=np.int32))
        (found,) = self._scored(ScoresOf(items), sessions, lambda part, rows: (), (place,))
        return found

    def _scored(self, f, sessions, per_session, per_item):
        """What f gives for the scores of all sessions (see Scorer), without the `finite` that it ends with.

        per_session: further arguments of f for a slice of the sessions, filled up to a number of rows.
        """
        most, found = self._sessions[-1], []
        for start in range(0, len(sessions), most):
            part = slice(start, start + most)
            some = sessions[part]
            rows = _size(len(some), self._sessions)
            readouts = _rows([s.readout for s in some], rows)
            newest = _rows([_filled(np.asarray(s.items[:-NEWEST - 1:-1], np.int32), NEWEST) for s in some], rows)
            *values, finite = self._score(
                self._params, self._followers, readouts, self._held(some), newest, per_session(part, rows), per_item,
                f=f,
            )
            if not np.asarray(finite)[:len(some)].all():
                raise TrainingError('the model gives scores that are not finite: it comes from a run that diverged')
            found.append([np.asarray(value)[:len(some)] for value in values])
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def _held(self, sessions):
        """What the sessions hold, as arrays int32 [4, n] for Seen.of_lists; None where no term reads it."""
        if self._followers is None and not hasattr(self.network.bind(self._params), 'seen'):
            return None
        tables = []
        for number, session in enumerate(sessions):
            items, last, counts = session.held.table
            tables.append(np.stack([items, np.full_like(items, number), session.length - last, counts]))
        held, size = np.concatenate(tables, axis=1), _HELD
        while size < held.shape[1]:
            size *= _GROWTH
        return np.pad(held, [(0, 0), (0, size - held.shape[1])])


def _size(n: int, sizes: tuple[int, ...]) -> int:
    return next(size for size in sizes if size >= n)


def _rows(each: list[Any], rows: int) -> np.ndarray:
    """One array of equal ones, with zeros for the rows that are left over."""
    array = np.stack(each)
    return np.pad(array, [(0, rows - len(each))] + [(0, 0)] * (array.ndim - 1))


def _filled(values: np.ndarray, size: int) -> np.ndarray:
    return np.pad(values, (0, size - len(values)))


def _extend(network, unravel, params, states, readouts, items, gaps, number, lengths):
    """States [n, S] and readouts [n, D] after the first `lengths` [n] of some events [n, events]."""
    model = network.bind(params)

    def event(carry, at):
        items, gaps, k = at
        readout, state = model.prefix_step(items, gaps, number + k, carry[0])
        counts = k < lengths

        def kept(new, old):
            return jnp.where(counts.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        return jax.tree.map(kept, (state, readout.astype(readouts.dtype)), carry), None

    events = jnp.arange(items.shape[1], dtype=number.dtype)
    (state, readouts), _ = lax.scan(event, (unravel(states), readouts), (items.T, gaps.T, events))
    return jax.vmap(lambda own: ravel_pytree(own)[0])(state), readouts


def _score(network, dtype, params, followers, readouts, held, newest, per_session, per_item, *, f):
    model = network.bind(params)
    seen = None if held is None else Seen.of_lists(*held)
    shard, rows = TableShard(network.num_items + 1), model.item_embedding[...]
    return of_scores(f, model, rows, shard, readouts.astype(dtype), per_session, seen, newest, followers, per_item)
