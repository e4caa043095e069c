"""Batches of any reader → Interactions, each row judged by itself."""
import collections
import dataclasses
from collections.abc import Iterable

import numpy as np
import polars as pl

from ssd4rec_jax.data import ids
from ssd4rec_jax.data.features import as_feature
from ssd4rec_jax.data.interactions import Interactions
from ssd4rec_jax.data.tables.batch import BadRow, Batch
from ssd4rec_jax.data.tables.formats import FEATURE, PART
from ssd4rec_jax.data.times import TimeColumn
from ssd4rec_jax.errors import ConfigError, DataError

# Below so many bad rows their share is judged at the end alone.
_FEW = 10_000


@dataclasses.dataclass(frozen=True)
class BadRowPolicy:
    """What becomes of rows that cannot be used.

    skip: they are left out and counted; otherwise the first one is an error.
    max_share: of all rows; more of them are an error all the same.
    """

    skip: bool = False
    max_share: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.max_share <= 1:
            raise ConfigError(f'--max_bad_share={self.max_share} must lie between 0 and 1')


REFUSE = BadRowPolicy()  # the log at its first bad row


class LogBuilder:
    """Collects the rows of one log.

    columns: {'user', 'item', 'time', and FEATURE + name for each feature: column}, for messages; 'time' '' takes the
      order of the rows.
    source: the file or files. integers: the format says that ids are integers. order_unsure: as in Interactions.
    """

    def __init__(
        self, columns: dict[str, str], source: str, policy: BadRowPolicy, *, time_format: str = '',
        integers: bool = False, order_unsure: bool = False,
    ):
        self.columns, self.source, self.policy, self.integers = columns, source, policy, integers
        self.order_unsure = order_unsure
        self.rows, self.bad = 0, list[BadRow]()
        self._time = TimeColumn(columns['time'], source, time_format) if columns['time'] else None
        self._parts: dict[str, list[pl.Series]] = {role: [] for role in columns}

    def add_all(self, batches: Iterable[Batch]) -> int:
        """Add the rows of some batches; the number of all rows, the bad ones included."""
        before = self.rows
        for batch in batches:
            self._add(batch)
        return self.rows - before

    def _add(self, batch: Batch) -> None:
        frame, place = batch.frame, batch.place
        for role in ('user', 'item', 'time'):
            name = self.columns[role]
            if name and (frame[role].dtype.is_nested() or frame[role].dtype in (pl.Boolean, pl.Object)):
                raise DataError(f'{self.source}: column {name} holds {frame[role].dtype}, no {role}s')
        read = {role: ids.canonical(frame[role], integers=self.integers) for role in ('user', 'item')}
        if self._time is not None and len(frame):
            read['time'] = self._time.read(frame['time'], place)
        elif self._time is None:
            read['time'] = pl.int_range(self.rows, self.rows + len(frame), eager=True)
        self.rows += len(frame) + len(batch.broken)
        missing = {role: column.null_count() > 0 for role, column in read.items()}
        read |= {role: frame[role] for role in frame.columns if role.startswith(FEATURE) or role == PART}
        bad = list(batch.broken)
        if any(missing.values()):
            use = pl.Series(np.ones(len(frame), bool))
            for role in [role for role, some in missing.items() if some]:
                use &= read[role].is_not_null()
            bad += [self._bad_row(batch, row, read) for row in (~use).arg_true().to_list()]
            read = {role: column.filter(use) for role, column in read.items()}
        if bad:
            self._refuse_or_keep(bad)
        if len(read['user']):
            # What was text because of a bad row may be integers now.
            for role in ('user', 'item'):
                self._parts[role].append(ids.narrow(ids.canonical(read.pop(role))))
            for role, column in read.items():
                self._parts.setdefault(role, []).append(column)

    def _bad_row(self, batch: Batch, row: int, read: dict[str, pl.Series]) -> BadRow:
        values = batch.frame.row(row, named=True)
        for role in ('user', 'item'):
            if read[role][row] is None:
                kind, reason = f'no {role} id', _id_reason(self.columns[role], values[role], self.integers)
                break
        else:
            assert self._time is not None
            kind, reason = 'no time', self._time.reason(values['time'])
        return BadRow(batch.place(row), kind, reason, batch.text(row))

    def _refuse_or_keep(self, bad: list[BadRow]) -> None:
        bad.sort(key=lambda row: int(row.place.rpartition(':')[2].removeprefix(' row ')))
        if not self.policy.skip:
            first = bad[0]
            raise DataError(
                f'{first.place}: {first.reason}: correct or remove the line, or leave such rows out with '
                '--bad_rows=skip'
            )
        self.bad += bad
        if len(self.bad) > max(_FEW, self.policy.max_share * self.rows):
            self._refuse_share()

    def _refuse_share(self) -> None:
        kinds = ', '.join(f'{n} {kind}' for kind, n in self.bad_kinds().items())
        raise DataError(
            f'{self.source}: {len(self.bad)} of {self.rows} rows read are bad ({kinds}; the first is '
            f'{self.bad[0].place}: '
            f'{self.bad[0].reason}), more than --max_bad_share={self.policy.max_share:g}: correct them, or allow more'
        )

    def bad_kinds(self) -> dict[str, int]:
        """How many bad rows there are of each kind."""
        return dict(collections.Counter(row.kind for row in self.bad))

    def finish(self, notes: Iterable[str] = ()) -> Interactions:
        """The log; DataError where too many rows are bad or none is left. The builder is empty afterwards."""
        if len(self.bad) > self.policy.max_share * self.rows:
            self._refuse_share()
        if not self._parts['time']:
            raise DataError(f'{self.source}: holds no rows: give the whole log')
        time_parts = self._parts.pop('time')
        is_float = any(part.dtype == pl.Float64 for part in time_parts)
        times = pl.concat([part.cast(pl.Float64) if is_float else part for part in time_parts]).to_numpy()
        time_parts.clear()
        if is_float and np.all(times == np.floor(times)):
            times = times.astype(np.int64)
        features = {
            (name := role.removeprefix(FEATURE)): as_feature(self._parts.pop(role), name, self.source)
            for role in list(self._parts) if role.startswith(FEATURE)
        }
        return Interactions(
            users=ids.joined(self._parts.pop('user')), items=ids.joined(self._parts.pop('item')), times=times,
            source=self.source, time_unit=self._time.unit() if self._time else '', bad_rows=tuple(self.bad),
            order_unsure=self.order_unsure, notes=tuple(notes),
            features=features, parts=pl.concat(self._parts.pop(PART)).to_numpy() if PART in self._parts else None,
        )

    def time_note(self) -> str:
        """What was found out about the times, as a sentence."""
        if self._time is None:
            return f'{self.source}: the order of the rows is taken for the order in time'
        return self._time.note()


def _id_reason(name: str, value: object, integers: bool) -> str:
    text = '' if value is None else str(value)
    if text.strip() in ids.MISSING_WORDS:
        return f'{name} is {text!r}, which stands for a missing id'
    if not text.strip():
        return f'{name} is empty'
    return f'{name} is {text!r}, not an integer' if integers else f'{name} is {text!r}, not an id'
