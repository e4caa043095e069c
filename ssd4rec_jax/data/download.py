"""Official files over HTTP: resumed where an earlier attempt stopped, verified, then renamed into place.

Where no checksum is published, what can be checked is: the length that the server tells, that a part is continued with
bytes of the same version of the file, and that the first rows look like rows.
"""
import contextlib
import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path

from absl import logging

from ssd4rec_jax.data.raw_file import RawFile
from ssd4rec_jax.errors import DataError
from ssd4rec_jax.files import locked, parse_json

OnBytes = Callable[[int, int | None], None]  # bytes here so far, bytes in all where the server says so

_CHUNK_BYTES = 1 << 20
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # statuses worth another attempt


class _Interrupted(Exception):
    """The transfer broke off; what has arrived is kept and another attempt may go on from there."""


def download(
    address: str, target: Path, *, md5: str = '', size: int = 0, form: str = '', member: str = '',
    progress: OnBytes | None = None, attempts: int = 4, first_wait: float = 1.0, timeout: float = 30.0,
) -> None:
    """Fetch a file to `target`; it appears there only whole and verified. Of two processes one fetches and one waits.

    md5, size: of the official file where they are known; '' and 0 where not. form: regular expression that the first
    line, decompressed, matches as a whole, where there is no checksum; '' is not checked. member: of an archive, the
    file that this line is of.
    attempts: how often a broken transfer is taken up again, each time after twice the wait in seconds.
    DataError if the server cannot be reached, refuses, or sends another file; what arrived of a broken transfer stays
    in `target`.part for the next call, and which version of the file it is in `target`.part.json.
    """
    part = _Part(target.with_name(f'{target.name}.part'), address)
    by_hand = f'or get {address} elsewhere and put it into {target.parent.absolute()}'
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent):
            if target.exists():  # another process has fetched it
                return
            for attempt in range(attempts):
                try:
                    _transfer(address, part, md5, size, progress, timeout)
                    break
                except _Interrupted as error:
                    if attempt == attempts - 1:
                        raise DataError(f'cannot download {target.name} ({error}): try again, {by_hand}') from error
                    logging.warning('download of %s broke off (%s): trying again', target.name, error)
                    time.sleep(first_wait * 2**attempt)
                except urllib.error.HTTPError as error:
                    raise DataError(
                        f'cannot download {target.name} (the server answers {error.code} {error.reason}): '
                        f'try later, {by_hand}'
                    ) from error
            _verify(part, md5, size, form, member, by_hand)
            os.replace(part.path, target)
            part.forget()
    except OSError as error:
        raise DataError(
            f'cannot download {target.name}, {part.path} cannot be written ({error}): make room'
        ) from error


class _Part:
    """The bytes of a file that have arrived, and the version of it that they belong to."""

    def __init__(self, path: Path, address: str):
        self.path, self.address = path, address
        self._about = path.with_name(f'{path.name}.json')

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self) -> str:
        """The server's name for the version (an ETag or a date), '' where none is known of these bytes."""
        try:
            about = parse_json(self._about.read_bytes())
        except (OSError, ValueError):
            return ''
        version = about.get('version')
        return version if about.get('address') == self.address and isinstance(version, str) else ''

    def begin(self, version: str) -> None:
        """Note the version before the first byte of it is written."""
        self.drop()
        if version:
            self._about.write_text(json.dumps({'address': self.address, 'version': version}))

    def forget(self) -> None:
        with contextlib.suppress(OSError):
            self._about.unlink(missing_ok=True)

    def drop(self) -> None:
        self.forget()
        self.path.unlink(missing_ok=True)


def _transfer(
    address: str, part: _Part, md5: str, size: int, progress: OnBytes | None, timeout: float
) -> None:
    """Append to the part until it is whole; _Interrupted where the network fails, OSError where the disk does."""
    here, version = part.size(), part.version()
    if size and here == size and md5:
        return
    if here and not (version or md5):  # nothing would show that the rest is another file's
        here = 0
    request = urllib.request.Request(address, headers={'User-Agent': 'ssd4rec-jax', 'Accept-Encoding': 'identity'})
    if here:
        request.add_header('Range', f'bytes={here}-')
        if version:
            request.add_header('If-Range', version)
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing lies beyond what is here, so it is whole or another file's: begin anew
            part.drop()
            raise _Interrupted('the file on the server has another size') from error
        if error.code in _PASSING:
            raise _Interrupted(f'the server answers {error.code} {error.reason}') from error
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, 'reason', error)
        raise _Interrupted(f'the server cannot be reached: {reason or type(error).__name__}') from error
    total: int | None
    with response:
        if response.status == 206:
            total = _continued(response.headers, here, size, part)
        else:  # the server sends the whole file, whatever was asked for
            here, length = 0, _length(response.headers)
            total = size or None if length is None else length
            if total is None and not md5 and response.headers.get('Transfer-Encoding') != 'chunked':
                raise _Interrupted('the server tells no length, so that a cut file would not be noticed')
            part.begin(_version(response.headers))
        with open(part.path, 'r+b' if here else 'wb') as out:
            out.seek(here)
            while chunk := _read(response):
                out.write(chunk)
                here += len(chunk)
                if progress:
                    progress(here, total)
            out.truncate()
            out.flush()
            os.fsync(out.fileno())
    if total is not None and here < total:
        raise _Interrupted(f'{here} of {total} bytes arrived')


def _version(headers: Message) -> str:
    """What If-Range may name: a strong ETag, else the date of the last change, else ''."""
    tag = headers.get('ETag', '')
    return tag if tag.startswith('"') else headers.get('Last-Modified', '')


def _length(headers: Message) -> int | None:
    """Content-Length; None where there is none, _Interrupted where it is no number."""
    text = headers.get('Content-Length')
    if text is None:
        return None
    if not re.fullmatch('[0-9]{1,18}', text.strip()):
        raise _Interrupted(f'the server tells a length of {text!r}')
    return int(text)


def _continued(headers: Message, here: int, size: int, part: _Part) -> int:
    """Bytes of the whole file, of an answer that goes on at byte `here`; _Interrupted where it does not."""
    told = headers.get('Content-Range', '')
    found = re.fullmatch('bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})', told.strip())
    first, last, total = map(int, found.groups()) if found else (-1, -1, -1)
    length = _length(headers)
    fits = first == here and last == total - 1 and (length is None or length == total - here)
    if not fits or size and total != size:
        part.drop()
        raise _Interrupted(f'asked for the bytes from {here} on, the server sends {told!r}')
    return total


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Interrupted(str(error) or type(error).__name__) from error


def _verify(part: _Part, md5: str, size: int, form: str, member: str, by_hand: str) -> None:
    found = part.size()
    problem = f'it has {found} bytes instead of {size}' if size and found != size else ''
    if md5 and not problem:
        with open(part.path, 'rb') as file:
            digest = hashlib.file_digest(file, 'md5').hexdigest()
        problem = f'its md5 is {digest} instead of {md5}' if digest != md5 else ''
    if form and not problem:
        try:
            with RawFile(part.path, member).open() as file:  # whose checksums are read too, where it has any
                line = file.readline(10_000).decode(errors='replace').rstrip('\r\n')
            problem = '' if re.fullmatch(form, line) else f'its first line is {line[:60]!r}'
        except DataError as error:
            problem = str(error)
    if problem:
        part.drop()
        raise DataError(
            f'what arrived as {part.path.stem} is not the official file ({problem}) and was removed: try again, '
            f'{by_hand}'
        )
