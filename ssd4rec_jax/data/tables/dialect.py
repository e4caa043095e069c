"""The first bytes of a text table → how it is read."""
import csv
import dataclasses
import re

from ssd4rec_jax.data.tables.formats import TableFormat, TableOptions
from ssd4rec_jax.data.tables.names import WITHOUT_TIMES, chosen, guessed, plain_name
from ssd4rec_jax.data.tables.rows import quotes_enclose_fields
from ssd4rec_jax.errors import ConfigError, DataError

SAMPLE_BYTES = 1 << 20
_CANDIDATES = ('\t', '::', ',', ';', '|', 'space')
_VALUE = re.compile(r'-?\d+(\.\d+)?|\d{4}-\d\d-\d\d.*|\d{1,2}[/.]\d{1,2}[/.]\d{4}.*')  # no column is called so
_EXCEL = re.compile(r'sep=(.)')
_LIST = '_list'
_SPOKEN = {'tab': '\t', '\\t': '\t', ' ': 'space', 'comma': ',', 'semicolon': ';', 'pipe': '|'}


def recognise(sample: str, options: TableOptions, file: object) -> tuple[TableFormat, list[str]]:
    """(how the table that begins with `sample` is read, what was guessed of it, as sentences).

    DataError where that cannot be found out, saying which flag tells it; ConfigError for an option that cannot be.
    """
    lines = sample.splitlines()
    lines = lines[:-1] if len(lines) > 1 and len(sample) >= SAMPLE_BYTES else lines  # the last one may be cut
    if not lines:
        raise DataError(f'{file}: is empty: give the whole log')
    separator, skipped = _given_separator(options), 0
    if excel := _EXCEL.fullmatch(lines[0].strip()):
        separator, skipped = separator or excel[1], 1
        if len(lines) == 1:
            raise DataError(f'{file}: holds no rows: give the whole log')
    lines = lines[skipped:]
    separator = separator or _guess_separator(lines, options, file)
    quoted = _quoted(separator, sample, options)
    names = options.columns or tuple(map(plain_name, split_line(lines[0], separator, quoted)))
    if not options.columns:
        _check_header(names, lines, separator, options, f'{file}:{1 + skipped}')
    lists = _history_lists(lines[0], separator, options, f'{file}:{1 + skipped}')
    if lists and options.time is None:
        options = dataclasses.replace(options, time=WITHOUT_TIMES)
    columns, notes = chosen(list(names), options, f'{file}:{1 + skipped}')
    if lists and columns['item'] + _LIST not in lists:
        raise DataError(
            f'{file}:{1 + skipped}: {lists[0]} holds a list of items a row, and none is called '
            f'{columns["item"]}{_LIST}, which would be the history before the column of items'
        )
    if lists:
        notes.append(f'{file}: each row is a history, {columns["item"]}{_LIST} and then {columns["item"]}')
    format = TableFormat(
        separator, columns['user'], columns['item'], columns['time'], columns=options.columns, quoted=quoted,
        encoding=options.encoding or '', skipped_lines=skipped, time_format=options.time_format or '',
        order_unsure=bool(options.columns), features=tuple(map(plain_name, options.features)),
        list=columns['item'] + _LIST if lists else '',
    )
    return format, notes


def split_line(line: str, separator: str, quoted: bool) -> list[str]:
    """The fields of a line that ends its row."""
    if separator == 'space':
        return line.split()
    if not quoted or '"' not in line:
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:
        return line.split(separator)


def _given_separator(options: TableOptions) -> str | None:
    if options.separator is None:
        return None
    separator = _SPOKEN.get(options.separator, options.separator)
    twice = len(separator) == 2 and separator[0] == separator[1]
    if separator != 'space' and len(separator) != 1 and not twice or not separator.isascii() or separator in '\r\n"':
        raise ConfigError(
            f'--separator={options.separator!r} must be one character (tab for a tabulator, space for runs of blanks) '
            'or '
            'one twice (::)'
        )
    return separator


def _guess_separator(lines: list[str], options: TableOptions, file: object) -> str:
    """The separator by which the first lines have the most alike fields, among them known names of a header."""
    head = lines[:20]
    scores = {}
    for separator in _CANDIDATES:
        counts = [len(split_line(line, separator, separator in ',;')) for line in head]
        if counts[0] < 2:
            continue
        names = [plain_name(name) for name in split_line(lines[0], separator, separator in ',;|')]
        known = sum(guessed(names, role) is not None for role in ('user', 'item', 'time'))
        known += sum(name in names for name in (options.user, options.item, options.time) if name)
        scores[separator] = (known, counts.count(counts[0]), counts[0] > 1)
    if not scores:
        raise DataError(
            f'{file}: {lines[0][:80]!r}, its first line, has one field: tell the fields apart with --separator'
        )
    return max(scores, key=lambda s: scores[s])


def _quoted(separator: str, sample: str, options: TableOptions) -> bool:
    if options.quote not in (None, '"', 'double', 'none', ''):
        raise ConfigError(f"--quote={options.quote} is not read: quotes are '\"', or none where they mean nothing")
    if separator == 'space' or len(separator) > 1:
        return False
    if options.quote is not None:
        return options.quote not in ('none', '')
    # Tab-separated files seldom quote: one quote that does not enclose a field makes all of them mere letters.
    return separator != '\t' or '"' not in sample or quotes_enclose_fields(
        sample, separator, whole=len(sample) < SAMPLE_BYTES
    )


def _history_lists(header: str, separator: str, options: TableOptions, where: str) -> list[str]:
    """The columns of lists in the header of RecBole's benchmark files, whose rows hold whole histories."""
    fields = [] if options.columns else map(str.strip, split_line(header, separator, False))
    lists = [plain_name(name) for name in fields if name.endswith(f'{_LIST}:token_seq')]
    if lists and options.features:
        raise DataError(
            f'{where}: {lists[0]} holds a list of items a row, so that --features has no value for each item'
        )
    return lists


def _check_header(names: tuple[str, ...], lines: list[str], separator: str, options: TableOptions, where: str) -> None:
    """DataError where the first line looks like a row: no user or item column is known by name, one is a number."""
    known = [guessed(list(names), role) for role in ('user', 'item')]
    named = [name in names for name in (options.user, options.item, options.time) if name and name != WITHOUT_TIMES]
    if all(known) or any(named) or not any(_VALUE.fullmatch(name.strip()) for name in names):
        return
    example = {2: 'user,item', 3: 'user,item,time', 4: 'user,item,rating,time'}.get(len(names), 'user,item,...,time')
    order = ' --time_column=none' if len(names) == 2 else ''
    raise DataError(
        f'{where}: {lines[0][:80]!r} is no header: for a file without one name its {len(names)} columns in their '
        'order, '
        f'such as --columns={example}{order}'
    )
