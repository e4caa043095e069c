"""The one door for tables: files of any form that is read → Interactions."""
import json
from collections.abc import Iterable, Iterator

import polars as pl

from ssd4rec_jax.data.history_lists import HistoryLists
from ssd4rec_jax.data.interactions import Interactions
from ssd4rec_jax.data.log import REFUSE, BadRowPolicy, LogBuilder
from ssd4rec_jax.data.raw_file import RawFile
from ssd4rec_jax.data.splits import PARTS
from ssd4rec_jax.data.tables.batch import Batch
from ssd4rec_jax.data.tables.dialect import SAMPLE_BYTES, recognise
from ssd4rec_jax.data.tables.formats import GUESS, PART, JsonLinesFormat, TableFormat, TableOptions, columns_read
from ssd4rec_jax.data.tables.frames import as_polars, column_names, frame_batches
from ssd4rec_jax.data.tables.json_lines import json_batches
from ssd4rec_jax.data.tables.names import chosen
from ssd4rec_jax.data.tables.text import first_text, text_batches
from ssd4rec_jax.errors import DataError

Format = TableFormat | JsonLinesFormat | TableOptions


def read_interactions(
    files: tuple[RawFile, ...], format: Format, policy: BadRowPolicy = REFUSE, parts: tuple[str, ...] = ()
) -> Interactions:
    """All rows of the files, one file after another, duplicates kept.

    format: how the files are written; with TableOptions it is found out from each file.
    parts: what each file is for, one of splits.PARTS; () where they are not for different ends.
    DataError names what is wrong and where.
    """
    builder, notes, lists = None, [], HistoryLists()
    for file, part in zip(files, parts or [''] * len(files), strict=True):
        known, columns, batches, said = _opened(file, format)
        notes += [note for note in said if note not in notes]
        if builder is None:
            builder = LogBuilder(
                columns, ', '.join(map(str, files)), policy, time_format=known.time_format or '',
                integers=isinstance(known, TableFormat) and known.numeric_ids,
                order_unsure=isinstance(known, TableFormat) and known.order_unsure,
            )
        builder.columns = columns
        if isinstance(known, TableFormat) and known.list:
            batches = (lists.expanded(batch, part) for batch in batches)
        elif part:
            batches = _of_part(batches, part)
        before = lists.rows
        # A file of lists may have rows that only repeat what others say.
        if not builder.add_all(batches) + lists.rows - before:
            raise DataError(f'{file}: holds no rows: give the whole log')
    if builder is None:
        raise DataError('no file is named')
    if lists.repeated:
        notes.append(f'warning: {lists.repeated:,} rows of held-out files say only what was read before: left out')
    return builder.finish([*notes, builder.time_note()] if isinstance(format, TableOptions) else notes)


def read_frame(
    frame: object, options: TableOptions = GUESS, policy: BadRowPolicy = REFUSE
) -> Interactions:
    """All rows of a frame of polars or pandas or of a pyarrow.Table; DataError names what is wrong and where."""
    table = as_polars(frame)
    columns, notes = chosen(column_names(table, 'the frame'), options, 'the frame')
    builder = LogBuilder(columns, 'the frame', policy, time_format=options.time_format or '')
    builder.add_all(frame_batches(table, columns, 'the frame'))
    return builder.finish([*notes, builder.time_note()])


def _opened(file: RawFile, format: Format) -> tuple[Format, dict[str, str], Iterable[Batch], list[str]]:
    """(the format found out, the columns that are read, their rows, what was guessed)."""
    if isinstance(format, TableFormat):
        return format, _columns(format), text_batches(file, format), []
    if isinstance(format, JsonLinesFormat):
        return format, _columns(format), json_batches(file, format), []
    if file.kind() == 'parquet':
        table = pl.scan_parquet(file.path, glob=False)
        columns, notes = chosen(column_names(table, str(file)), format, str(file))
        return format, columns, frame_batches(table, columns, str(file)), notes
    sample = first_text(file, format.encoding or '', SAMPLE_BYTES)
    if sample.lstrip().startswith('{'):
        columns, notes = chosen(_keys(sample), format, str(file))
        lines = JsonLinesFormat(
            columns['user'], columns['item'], columns['time'], format.time_format or '', format.features
        )
        return lines, columns, json_batches(file, lines), notes
    if sample.lstrip().startswith('['):
        raise DataError(f'{file}: is one JSON array: write one object a line (jq -c ".[]" does)')
    if sample.startswith('PAR1'):
        raise DataError(f'{file}: is a compressed Parquet file: decompress it')
    if sample.startswith(('ARROW1', 'SQLite format')) or '\0' in sample[:8]:
        raise DataError(f'{file}: is no text and no Parquet file: write the log as csv or Parquet')
    table_format, notes = recognise(sample, format, file)
    return table_format, _columns(table_format), text_batches(file, table_format), notes


def _columns(format: TableFormat | JsonLinesFormat) -> dict[str, str]:
    return {'time': '', **{role: name for role, name in columns_read(format).items() if role != 'list'}}


def _of_part(batches: Iterable[Batch], part: str) -> Iterator[Batch]:
    """The batches with the column of what their file is for."""
    for batch in batches:
        yield batch._replace(frame=batch.frame.with_columns(pl.lit(PARTS.index(part), pl.Int8).alias(PART)))


def _keys(sample: str) -> list[str]:
    """The keys of the first objects of JSON lines, as their text shows them."""
    return list(dict.fromkeys(_keys_of_lines(sample.splitlines()[:100])))


def _keys_of_lines(lines: list[str]) -> Iterator[str]:
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield from record
