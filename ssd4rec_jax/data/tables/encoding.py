"""Bytes of a text file in any encoding → UTF-8 with lines that end in LF, as they stream by."""
import codecs
from collections.abc import Iterable, Iterator

from ssd4rec_jax.data.raw_file import BLOCK_BYTES
from ssd4rec_jax.errors import ConfigError, DataError

_MARKS = ((codecs.BOM_UTF8, 'utf-8'), (codecs.BOM_UTF16_LE, 'utf-16-le'), (codecs.BOM_UTF16_BE, 'utf-16-be'))


def as_utf8(chunks: Iterable[bytes], encoding: str, file: object) -> Iterator[bytes]:
    """The text of a file in chunks of UTF-8 without a byte order mark; a file whose lines end in CR gets LF.

    encoding: '' is UTF-8, passed through unchecked, unless a byte order mark says UTF-16.
    DataError where bytes are not of the encoding named; ConfigError where there is no such encoding.
    """
    decoder, old_mac = None, False
    for number, chunk in enumerate(chunks):
        if number == 0:
            if chunk[257:262] == b'ustar':
                raise DataError(f'{file}: is a tar archive: unpack it and name the file of the log')
            chunk, encoding = _without_mark(chunk, encoding)
            decoder = _decoder(encoding) if encoding else None
        if decoder is not None:
            chunk = _decode(decoder, chunk, encoding, file)
        elif number == 0 and b'\0' in chunk[:1000] and chunk[:1000].count(b'\0') * 3 > len(chunk[:1000]):
            raise DataError(f'{file}: looks like UTF-16 without a byte order mark: name it with --encoding=utf-16-le')
        if number == 0:
            old_mac = b'\r' in chunk and b'\n' not in chunk
        yield chunk.replace(b'\r', b'\n') if old_mac else chunk
    if decoder is not None:
        yield _decode(decoder, b'', encoding, file, final=True)


def _without_mark(chunk: bytes, encoding: str) -> tuple[bytes, str]:
    for mark, marked in _MARKS:
        if chunk.startswith(mark) and (not encoding or _normal(encoding).startswith(marked[:6])):
            return chunk[len(mark):], '' if marked == 'utf-8' else marked
    return chunk, '' if encoding and _normal(encoding) == 'utf-8' else encoding


def _normal(encoding: str) -> str:
    try:
        return codecs.lookup(encoding).name
    except LookupError as error:
        raise ConfigError(f'--encoding={encoding} is no encoding: for example utf-8, latin-1, utf-16') from error


def _decoder(encoding: str) -> codecs.IncrementalDecoder:
    _normal(encoding)
    return codecs.getincrementaldecoder(encoding)()


def _decode(
    decoder: codecs.IncrementalDecoder, chunk: bytes, encoding: str, file: object, final: bool = False
) -> bytes:
    try:
        return decoder.decode(chunk, final).encode()
    except UnicodeError as error:
        raise DataError(f'{file}: is not text in {encoding} ({error}): name another --encoding') from error


def blocks_of_lines(chunks: Iterable[bytes], block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Whole lines, about block_bytes at a time, so that a log larger than memory can be parsed as it streams by."""
    rest = b''
    for chunk in chunks:
        for start in range(0, len(chunk), block_bytes):
            piece = chunk[start:start + block_bytes]
            end = piece.rfind(b'\n') + 1
            if end:
                yield rest + piece[:end]
                rest = piece[end:]
            else:
                rest += piece
    if rest:
        yield rest
