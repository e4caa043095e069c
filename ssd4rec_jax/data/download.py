"""Official files over HTTP: resumed where an earlier attempt stopped, verified, then renamed into place."""
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from absl import logging

from ssd4rec_jax.errors import DataError

OnBytes = Callable[[int, int | None], None]  # bytes here so far, bytes in all where the server says so

_CHUNK_BYTES = 1 << 20
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # statuses worth another attempt


class _Interrupted(Exception):
    """The transfer broke off; what has arrived is kept and another attempt may go on from there."""


def download(
    address: str, target: Path, *, md5: str = '', size: int = 0, progress: OnBytes | None = None,
    attempts: int = 4, first_wait: float = 1.0, timeout: float = 30.0,
) -> None:
    """Fetch a file to `target`; it appears there only whole and verified.

    md5, size: of the official file where they are known; '' and 0 where not.
    attempts: how often a broken transfer is taken up again, each time after twice the wait in seconds.
    DataError if the server cannot be reached, refuses, or sends another file; what arrived of a broken transfer stays
    in `target`.part for the next call.
    """
    part = target.with_name(f'{target.name}.part')
    by_hand = f'or get {address} elsewhere and put it into {target.parent.absolute()}'
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(attempts):
            try:
                _transfer(address, part, size, progress, timeout)
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
        _verify(part, md5, size, by_hand)
        os.replace(part, target)
    except OSError as error:
        raise DataError(f'cannot download {target.name}, {part} cannot be written ({error}): make room') from error


def _transfer(address: str, part: Path, size: int, progress: OnBytes | None, timeout: float) -> None:
    """Append to `part` until it is whole; _Interrupted where the network fails, OSError where the disk does."""
    here = part.stat().st_size if part.exists() else 0
    if size and here == size:
        return
    request = urllib.request.Request(address, headers={'User-Agent': 'ssd4rec-jax'})
    if here:
        request.add_header('Range', f'bytes={here}-')
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing lies beyond what is here, so it is whole or another file's: begin anew
            part.unlink()
            raise _Interrupted('the file on the server has another size') from error
        if error.code in _PASSING:
            raise _Interrupted(f'the server answers {error.code} {error.reason}') from error
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f'the server cannot be reached: {getattr(error, "reason", error)}') from error
    with response:
        if response.status != 206:  # the server sends the whole file, whatever was asked for
            here = 0
        length = response.headers.get('Content-Length')
        total = here + int(length) if length else size or None
        with open(part, 'r+b' if here else 'wb') as out:
            out.seek(here)
            while chunk := _read(response):
                out.write(chunk)
                here += len(chunk)
                if progress:
                    progress(here, total)
            out.flush()
            os.fsync(out.fileno())
    if total is not None and here < total:
        raise _Interrupted(f'{here} of {total} bytes arrived')


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(error) or type(error).__name__) from error


def _verify(part: Path, md5: str, size: int, by_hand: str) -> None:
    found = part.stat().st_size
    problem = f'it has {found} bytes instead of {size}' if size and found != size else ''
    if md5 and not problem:
        with open(part, 'rb') as file:
            digest = hashlib.file_digest(file, 'md5').hexdigest()
        problem = f'its md5 is {digest} instead of {md5}' if digest != md5 else ''
    if problem:
        part.unlink()
        raise DataError(
            f'what arrived as {part.stem} is not the official file ({problem}) and was removed: try again, {by_hand}'
        )
