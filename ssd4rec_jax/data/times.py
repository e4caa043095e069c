"""What a time is, the same for every reader: numbers in s, ms, us or ns, ISO 8601, any other format named, datetimes.

The form and the unit belong to a whole column: its first block of rows decides between numbers and dates, the size of
the numbers tells their unit.
"""
import re
from collections.abc import Callable
from typing import Literal

import numpy as np
import polars as pl

from ssd4rec_jax.errors import ConfigError, DataError

TimeUnit = Literal['ms', 'us', 'ns']
LAST = 2**63 - 1024  # the largest int64 that is a float64 too
# Numbers from here on are seconds, ms, us or ns since 1970; smaller ones may be any, and are positions where all are.
_SCALES = (('s', 1e8), ('ms', 1e11), ('us', 1e14), ('ns', 1e17))
_PER_SECOND = {'s': 1, 'ms': 10**3, 'us': 10**6, 'ns': 10**9}
_SPOKEN = {'s': 'seconds', 'ms': 'milliseconds', 'us': 'microseconds', 'ns': 'nanoseconds'}
_NUMBER = r'^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$'
_ISO = tuple(
    f'%Y-%m-%d{between}{clock}{zone}'
    for between, clock in (('T', '%H:%M:%S%.f'), (' ', '%H:%M:%S%.f'), ('T', '%H:%M'), (' ', '%H:%M'))
    for zone in ('', '%#z')
)
_ENOUGH = 3  # values of a column of which most are no times, for the fault to be the column's
_SLASHED = re.compile(r'\d{1,2}([/.-])\d{1,2}\1\d{4}(\D+\d{1,2}:\d{2}(:\d{2})?)?')


class TimeColumn:
    """One column of times, read block by block.

    name: of the column. where: the file or files, for messages. time_format: of dates that are not ISO 8601, or ''.
    """

    def __init__(self, name: str, where: str, time_format: str = ''):
        self.name, self.where, self.time_format = name, where, time_format
        self._is_date: bool | None = None
        self._date_unit: TimeUnit = 'us'
        self._first_of: dict[str, tuple[str, str]] = {}  # unit -> place and value of the first number of that size

    def read(self, values: pl.Series, place: Callable[[int], str]) -> pl.Series:
        """Int64, or Float64 where there are fractions; null where a value is no time.

        place: row number -> where it stands. DataError for what is wrong with the column as a whole.
        """
        if self._is_date is None and len(values):
            self._decide(values)
        times = self._dates(values) if self._is_date else _numbers(values)
        if not self._is_date:
            self._note_scales(times, place)
        return times

    def reason(self, value: object) -> str:
        """What is wrong with a value for which `read` gave null."""
        text = '' if value is None else str(value)
        if self._is_date:
            return f'{self.name} is {text!r}, not a date' + (f' as {self.time_format}' if self.time_format else '')
        if not re.match(_NUMBER, text.strip(), re.ASCII):
            return f'{self.name} is {text!r}, not a number'
        if text.strip().startswith('-') and float(text) != 0:
            return f'{self.name} is {text!r}, negative'
        return f'{self.name} is {text!r}, beyond a 64-bit integer'

    def unit(self) -> str:
        """'s', 'ms', 'us' or 'ns' since 1970; '' where the times are positions alone."""
        if self._is_date:
            return self._date_unit
        return next(iter(self._first_of), '')

    def note(self) -> str:
        """What was found out, as a sentence; '' where there is nothing to say."""
        if self._is_date:
            return f'{self.where}: {self.name} holds dates'
        unit = self.unit()
        if not unit:
            return f'{self.where}: {self.name} holds small numbers, which are taken for positions in time'
        return f'{self.where}: {self.name} holds {_SPOKEN[unit]} since 1970'

    def dates_of(self, texts: list[str], unit: str) -> list[int | None]:
        """ISO dates in a unit since 1970; None for what is none."""
        self._date_unit = 'us'
        micros = self._dates(pl.Series(texts, dtype=pl.String)).to_list()
        return [None if m is None else m * _PER_SECOND[unit] // 10**6 for m in micros]

    def _decide(self, values: pl.Series) -> None:
        if values.dtype.is_temporal():
            if values.dtype not in (pl.Datetime, pl.Date):
                raise DataError(f'{self.where}: {self.name} holds {values.dtype}, not points in time')
            self._is_date = True
            self._date_unit = getattr(values.dtype, 'time_unit', None) or 'us'
            return
        sample = values.head(10_000)
        numbers = len(sample) - _numbers(sample).null_count()
        dates = 0
        if not sample.dtype.is_numeric():
            if sample.cast(pl.String).str.contains(r':\d\d[.,]\d{7,9}').any():
                self._date_unit = 'ns'
            dates = len(sample) - self._dates(sample).null_count()
        self._is_date = bool(self.time_format) or dates > numbers
        readable = dates if self._is_date else numbers
        if len(sample) >= _ENOUGH and 2 * readable < len(sample):
            raise DataError(self._column_fault(sample))

    def _column_fault(self, sample: pl.Series) -> str:
        different = sample.unique(maintain_order=True).head(3).to_list()
        examples = ', '.join(repr('' if value is None else value) for value in different)
        if self.time_format:
            remedy = f'they are not of --time_format={self.time_format}: name the format that they have'
        elif any(_SLASHED.fullmatch(str(value).strip()) for value in sample.head(3).to_list()):
            text = next(str(value).strip() for value in sample.to_list() if _SLASHED.fullmatch(str(value).strip()))
            form = _format_like(text)
            remedy = f'name the format, such as --time_format="{form}" (day first; %m before %d, month first)'
        else:
            remedy = (
                'give numbers, ISO 8601 dates (2024-06-08T11:53:00), or the format with --time_format; '
                '--time_column=none '
                'takes the order of the rows'
            )
        return f'{self.where}: column {self.name} holds {examples}, neither numbers nor ISO dates: {remedy}'

    def _dates(self, values: pl.Series) -> pl.Series:
        unit = self._date_unit
        if values.dtype.is_temporal():
            return values.cast(pl.Datetime(unit)).cast(pl.Int64)  # with a zone, the time in UTC
        texts = values.cast(pl.String).str.strip_chars()
        if self.time_format:
            return _parsed(texts, self.time_format, unit)
        times = pl.Series(values.name, [None], dtype=pl.Int64).new_from_index(0, len(values))
        texts = texts.str.replace(r'^(\d{4}-\d\d-\d\d)$', '${1}T00:00').str.replace(r' ?UTC$', 'Z').str.replace(
            r'(\d) ([+-]\d\d:?\d\d)$', '$1$2').str.replace(',', '.', literal=True)
        for form in _ISO:
            missing = times.is_null()
            if not missing.any():
                break
            times = times.zip_with(~missing, _parsed(texts, form, unit))
        return times

    def _note_scales(self, times: pl.Series, place: Callable[[int], str]) -> None:
        """Remember the first number of each size; DataError once there are two sizes."""
        if times.null_count() == len(times):
            return
        smallest, largest = (_scale(float(value)) for value in (times.min(), times.max()))  # type: ignore[arg-type]
        for unit, low in _SCALES:
            if unit in self._first_of or not (largest == unit or smallest != largest):
                continue
            high = low * (1000 if unit != 'ns' else np.inf)
            rows = ((times >= low) & (times < high)).fill_null(False).arg_true()
            if len(rows):
                self._first_of[unit] = place(rows[0]), str(times[rows[0]])
        if len(self._first_of) > 1:
            found = ' and '.join(f'{_SPOKEN[unit]} ({at}: {value})' for unit, (at, value) in self._first_of.items())
            raise DataError(
                f'column {self.name} holds times of two scales, {found}: histories would be out of order: convert the '
                'column '
                'to one unit'
            )


def _scale(value: float) -> str:
    return next((unit for unit, low in reversed(_SCALES) if value >= low), '')


def _parsed(texts: pl.Series, form: str, unit: TimeUnit) -> pl.Series:
    """Int64 in `unit` since 1970, null where a text has another form; without a zone a time is UTC."""
    try:
        dates = texts.str.to_datetime(form, strict=False, time_unit=unit)
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f'--time_format={form} cannot be used ({str(error).splitlines()[0][:100]}): write it as strptime does, '
            'such as '
            '%d/%m/%Y %H:%M'
        ) from error
    return dates.cast(pl.Datetime(unit)).cast(pl.Int64)


def _numbers(values: pl.Series) -> pl.Series:
    """Numbers that are no dates: Int64 where all are whole in writing, so that '5.0' is exactly 5, else Float64."""
    if values.dtype.is_integer():
        times = values.cast(pl.Int64, strict=False)
    elif values.dtype.is_numeric():
        times = values.cast(pl.Float64)
    else:
        texts = values.cast(pl.String).str.strip_chars()
        texts = texts.set(~texts.str.contains(_NUMBER), None)
        floats = texts.cast(pl.Float64, strict=False)
        whole = texts.str.replace(r'\.0*$', '').cast(pl.Int64, strict=False)
        times = whole if whole.null_count() == floats.null_count() else floats
    inside = times.is_between(0, LAST) if times.dtype == pl.Int64 else times.is_between(0.0, float(LAST))
    return times.set(~inside.fill_null(False), None)


def _format_like(text: str) -> str:
    """The strptime format of a date such as '08/06/2024 11:53', the day taken to be first."""
    between = text[re.match(r'\d+', text).end()]  # type: ignore[union-attr]  # _SLASHED begins with digits
    date, _, clock = re.sub(r'^\S+', f'%d{between}%m{between}%Y', text).partition('%Y')
    clock = re.sub(r'\d{1,2}:\d{2}:\d{2}', '%H:%M:%S', clock)
    return f'{date}%Y{re.sub(r"[0-9]{1,2}:[0-9]{2}", "%H:%M", clock)}'


def as_stored(times: np.ndarray, unit: str) -> tuple[np.ndarray, str]:
    """(int64 times, their unit): fractions of seconds as us; fractions without a unit are rounded down."""
    if times.dtype == np.int64 or not unit:
        return times.astype(np.int64, copy=False), unit
    finer = {'s': 'us', 'ms': 'us', 'us': 'ns', 'ns': 'ns'}[unit]
    return np.round(times * (_PER_SECOND[finer] // _PER_SECOND[unit])).astype(np.int64), finer


def from_words(words: str, unit: str, key: str) -> int:
    """The inverse of in_words for a date or a number that the setting `key` gives."""
    if re.fullmatch(r'-?\d+', words):
        return int(words)
    found = TimeColumn(key, key).dates_of([words], unit)[0]
    if found is None:
        raise ConfigError(f'{key}={words} is no date: write it as 2024-06-08 or 2024-06-08T11:53:00')
    return found


def in_words(time: int, unit: str) -> str:
    """A time for people: ISO 8601 in UTC to the second, or the number itself where it has no unit."""
    if not unit:
        return str(time)
    seconds = time // _PER_SECOND[unit]
    try:
        return str(np.datetime64(seconds, 's'))
    except (OverflowError, ValueError):
        return f'{time} {unit}'
