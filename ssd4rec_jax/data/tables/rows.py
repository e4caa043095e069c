"""UTF-8 text → blocks of rows that polars can split: one line a row, one byte between fields, no quoting to heed.

Quotes follow RFC 4180: a field that begins with one ends with one, holds separators and line breaks in between, and
doubles the quotes inside. Blanks around a quoted field are no part of it. A quote inside a field that does not begin
with one is a character like any other. A row that breaks these rules ends with its line, so that the next is read.
"""
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ssd4rec_jax.data.raw_file import BLOCK_BYTES

# A quote that is still open after so many bytes is taken for one that was never closed.
LONGEST_ROW = 64 << 20
_SPARE = [bytes([byte]) for byte in range(31, 0, -1) if byte not in (9, 10, 13)]
_LF, _QUOTE = 10, 34
_OPEN = 'a quote opens a field and none closes it: close it, or switch quotes off with --quote=none'


def quotes_enclose_fields(text: str, separator: str, *, whole: bool) -> bool:
    """Whether every quote of a text opens or closes a field. whole: the text is not cut off at its end."""
    raw = text.replace('\r\n', '\n').rstrip('\n').encode() + b'\n'
    found = _regular(raw, separator.encode(), _spare_bytes(raw), 1)
    return found is not None and (found[1] == len(raw) if whole else 2 * found[1] >= len(raw))


class BrokenRow(NamedTuple):
    """A row that cannot be read: the number of its first line, what is wrong, and its text."""

    line: int
    reason: str
    text: str


class RowBlock(NamedTuple):
    """Some rows of a table.

    data: one line a row, each ended by LF.
    lines: int64 [rows], the number in the file of each row's first line.
    separator: the byte between two fields.
    newline: the byte that stands in `data` for a line break inside a field; b'' where there is none.
    broken: rows that are not in `data`.
    """

    data: bytes
    lines: np.ndarray
    separator: bytes
    newline: bytes
    broken: list[BrokenRow]


def row_blocks(
    chunks: Iterable[bytes], separator: str, quoted: bool, block_bytes: int = BLOCK_BYTES
) -> Iterator[RowBlock]:
    """All rows of a text, in blocks of whole rows. Blank lines at the text's end are none.

    separator: as in TableFormat.
    """
    first_line, rest = 1, b''
    for piece, last in _pieces(chunks, block_bytes):
        if rest.endswith(b'\r') and piece.startswith(b'\n'):
            rest = rest[:-1]
        rest += piece.replace(b'\r\n', b'\n')
        body = len(rest.rstrip(b'\r\n'))
        if last:
            text, held_back = rest[:body] + b'\n' * (body > 0), b''
        else:  # Blank lines that may be the text's last ones wait, and a CR that an LF may follow.
            end = body + (body > 0 and rest[body:body + 1] == b'\n')
            text, held_back = rest[:end], rest[end:]
        wait = not last and len(rest) <= max(LONGEST_ROW, block_bytes)
        block, used = _split(text, separator, quoted, first_line, last, wait)
        first_line += text.count(b'\n', 0, used)
        rest = text[used:] + held_back
        if len(block.lines) or block.broken:
            yield block


def _pieces(chunks: Iterable[bytes], block_bytes: int) -> Iterator[tuple[bytes, bool]]:
    """(bytes, whether they are the last ones)."""
    waiting = b''
    for chunk in chunks:
        for start in range(0, len(chunk), block_bytes):
            if waiting:
                yield waiting, False
            waiting = chunk[start:start + block_bytes]
    yield waiting, True


def _split(
    text: bytes, separator: str, quoted: bool, first_line: int, last: bool, wait: bool
) -> tuple[RowBlock, int]:
    """(the whole rows at the beginning of a text, how many bytes they take).

    last: nothing follows the text. wait: what follows may close a quote that the first row leaves open.
    """
    if not quoted or b'"' not in text:
        used = text.rfind(b'\n') + 1
        data, byte = _one_byte(text[:used], separator)
        return RowBlock(data, first_line + np.arange(data.count(b'\n')), byte, b'', []), used
    spare = _spare_bytes(text)
    found = _regular(text, separator.encode(), spare, first_line)
    if found is None or (last and found[1] < len(text)) or (not wait and not found[1]):
        found = _irregular(text, separator.encode(), spare, first_line, last, wait)
    return found


def _one_byte(text: bytes, separator: str) -> tuple[bytes, bytes]:
    """A text without quotes with one byte between its fields, and that byte."""
    if separator == 'space':
        byte = _spare_bytes(text)[0]
        return _blanks(text, byte), byte
    if len(separator) > 1:
        byte = _spare_bytes(text)[0]
        return text.replace(separator.encode(), byte), byte
    return text, separator.encode()


def _blanks(text: bytes, byte: bytes) -> bytes:
    """Runs of blanks and tabulators as one byte; those at a line's ends as none."""
    return re.sub(rb'[ \t]+', byte, re.sub(rb'(?m)^[ \t]+|[ \t]+$', b'', text))


def _spare_bytes(text: bytes) -> tuple[bytes, bytes]:
    """Two control characters that do not occur in a text (the first two tried where all of them do)."""
    free = (byte for byte in _SPARE if byte not in text)
    return next(free, _SPARE[0]), next(free, _SPARE[1])


def _regular(text: bytes, separator: bytes, spare: tuple[bytes, bytes], first_line: int) -> tuple[RowBlock, int] | None:
    """As _split, at NumPy's speed, where every quote of the whole rows opens or closes a field; else None."""
    raw = np.frombuffer(text, np.uint8)
    quote = raw == _QUOTE
    outside = (np.cumsum(quote, dtype=np.uint8) & 1) == 0
    breaks = raw == _LF
    ends = np.flatnonzero(breaks & outside)
    used = int(ends[-1]) + 1 if len(ends) else 0
    raw, outside, breaks = raw[:used], outside[:used], breaks[:used]
    quotes = np.flatnonzero(quote[:used])
    # In front of the first byte stands the last one, which ends a row too; behind the last quote a row ends.
    before, after = raw[quotes[0::2] - 1], raw[quotes[1::2] + 1]
    edges = (separator[0], _LF, _QUOTE)
    if not (np.isin(before, edges).all() and np.isin(after, edges).all()):
        return None
    plain = raw.copy()
    plain[(raw == separator[0]) & outside] = spare[0][0]
    plain[breaks & ~outside] = spare[1][0]
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    lines = first_line + np.searchsorted(np.flatnonzero(breaks), starts)
    return RowBlock(plain.tobytes(), lines, spare[0], spare[1], []), used


def _irregular(
    text: bytes, separator: bytes, spare: tuple[bytes, bytes], first_line: int, last: bool, wait: bool
) -> tuple[RowBlock, int]:
    """As _split, row by row."""
    quoted, plain = _field_patterns(separator)
    rows: list[bytes] = []
    lines: list[int] = []
    broken: list[BrokenRow] = []
    at, line = 0, first_line
    while at < len(text):
        fields, position, reason = [], at, ''
        while True:
            if match := quoted.match(text, position):
                fields.append(match[1])
            elif opening := plain.match(text, position):
                fields.append(opening[0])
                match = opening
            else:
                reason = _quote_fault(text, position)
                break
            position = match.end()
            if position >= len(text) or text[position] == _LF:
                break
            position += 1
        unfinished = b'\n' not in text[position:position + 1] if not reason else text.find(b'\n', position) < 0
        if not last and (unfinished or (reason == _OPEN and (wait or at))):
            break  # what follows may end the row, or close the quote
        end = position + 1
        if reason:
            end = text.find(b'\n', at) + 1 or len(text)
            broken.append(BrokenRow(line, reason, text[at:end].decode(errors='replace').rstrip('\n')))
        else:
            rows.append(spare[0].join(fields).replace(b'\n', spare[1]))
            lines.append(line)
        line += text.count(b'\n', at, end)
        at = min(end, len(text))
    data = b'\n'.join(rows) + b'\n' if rows else b''
    return RowBlock(data, np.asarray(lines, np.int64), spare[0], spare[1], broken), at


def _field_patterns(separator: bytes) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """Patterns of a field in quotes (group 1, quotes included) and of one without."""
    blank, edge = (rb'[ ]*+' if separator in b'\t ' else rb'[ \t]*+'), re.escape(separator)
    if separator == b' ':
        blank = b''
    return (
        re.compile(blank + rb'("(?:[^"]++|"")*+")' + blank + rb'(?=' + edge + rb'|\n|\Z)'),
        re.compile(rb'(?!' + blank + rb'")[^\n' + edge + rb']*+'),
    )


def _quote_fault(text: bytes, position: int) -> str:
    """What is wrong with a field that begins with a quote."""
    if re.compile(rb'[ \t]*+"(?:[^"]++|"")*+"').match(text, position):
        return 'text follows a closing quote: double the quotes inside a field, or switch them off with --quote=none'
    return _OPEN


def fields_of(row: bytes, separator: bytes, newline: bytes) -> list[str]:
    """The fields of one row of a RowBlock as text."""
    return [unquoted(field.decode(errors='replace'), newline.decode()) for field in row.split(separator)]


def unquoted(field: str, newline: str) -> str:
    """A field as it was meant."""
    if len(field) >= 2 and field[0] == field[-1] == '"':
        field = field[1:-1].replace('""', '"')
    return field.replace(newline, '\n') if newline else field
