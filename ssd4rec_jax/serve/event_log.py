"""The append-only log of new events: nothing that was acknowledged is lost, whatever ends the process.

A folder of JSON lines, which `ssd4rec train --dataset=interactions --data_dir='FOLDER/*.jsonl*'` reads as they are:

    events-00000001.jsonl.gz     closed: full, or left by an earlier process
    events-00000002.jsonl        open: {"user":"u1","item":"i7","time":1700000000.0,"crc":"1c291ca3"}

crc is the CRC-32 of the line without it. A process that was killed while it wrote leaves an incomplete last line, which
was never acknowledged; when the log is opened again it is moved to a file of its own, events-00000002.cut. A damaged
line anywhere else is an error.
"""
import fcntl
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import logging

from ssd4rec_jax.errors import UserError
from ssd4rec_jax.files import free_space, replace_file, sync_folder

SEGMENT_BYTES = 64 << 20  # after which a new file begins
_NAME = re.compile(r'events-(\d{8})\.jsonl(\.gz)?')


class Event(NamedTuple):
    """A user did something with an item. time: seconds since 1970."""

    user: str
    item: str
    time: float


class EventLog:
    """The log in a folder, which one process at a time may hold open. UserError where it is held or cannot be read.

    segment_bytes: the size at which a file is closed and compressed.
    """

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES):
        self.folder, self._segment_bytes = folder, segment_bytes
        self._failed: OSError | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise UserError(f'{folder}, the folder of new events, cannot be opened: {error}') from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise UserError(f'{folder} is in use by another server: name another folder with --events') from error
        self._events: list[Event] = []
        self._number, self._size, self._file = 0, 0, -1
        try:
            for file in sorted(folder.iterdir()):
                if named := _NAME.fullmatch(file.name):
                    self._number = int(named[1])
                    self._events += _recovered(file)
            for file in folder.glob('events-*.jsonl'):
                self._close_segment(file)
        except BaseException:
            os.close(self._lock)
            raise

    def take(self) -> list[Event]:
        """The events that the log held when it was opened, in order; once."""
        events, self._events = self._events, []
        return events

    def append(self, events: Sequence[Event]) -> None:
        """Have the disk hold events before this returns. UserError where it does not, which leaves the log as it was.

        After the disk has failed once, nothing is known of what it holds, and nothing more is taken.
        """
        if self._failed is not None:
            raise UserError(f'the log of events failed ({self._failed.strerror}): mend the disk and start anew')
        lines = b''.join(map(_line, events))
        try:
            if self._file < 0 or self._size + len(lines) > self._segment_bytes:
                self._next_file()
            self._write(lines)
        except OSError as error:
            raise UserError(f'events cannot be kept ({error.strerror}; {free_space(self.folder)} free)') from error

    def close(self) -> None:
        """Let another process open the log."""
        if self._file >= 0:
            os.close(self._file)
        os.close(self._lock)

    def _write(self, lines: bytes) -> None:
        done = 0
        try:
            while done < len(lines):
                done += os.write(self._file, lines[done:])
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        try:
            os.fsync(self._file)
        except OSError as error:
            self._failed = error
            raise
        self._size += len(lines)

    def _next_file(self) -> None:
        full, self._file = self._file, -1
        if full >= 0:
            os.close(full)
            self._close_segment(self._path(self._number))
        self._number, self._size = self._number + 1, 0
        self._file = os.open(self._path(self._number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        sync_folder(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f'events-{number:08d}.jsonl'

    def _close_segment(self, path: Path) -> None:
        """Compress a file that takes no more; where it is killed midway, both files hold the same, and one is read."""
        lines = path.read_bytes()
        if lines:
            replace_file(path.with_name(f'{path.name}.gz'), lambda out: out.write(gzip.compress(lines, 6, mtime=0)))
        path.unlink()
        sync_folder(self.folder)


def _recovered(file: Path) -> Iterator[Event]:
    """The events of a file; an incomplete last line of an open one is cut off."""
    compressed = file.suffix == '.gz'
    if not compressed and file.with_name(f'{file.name}.gz').exists():
        return
    try:
        lines = gzip.decompress(file.read_bytes()) if compressed else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f'{file} cannot be read ({error}): restore it from a copy') from error
    whole = lines.rfind(b'\n') + 1
    number = 0
    for number, line in enumerate(lines[:whole].splitlines(keepends=True), 1):
        try:
            yield _event(line)
        except ValueError as error:
            if compressed or any(_is_event(later) for later in lines[:whole].splitlines(keepends=True)[number:]):
                raise UserError(
                    f'{file}:{number} is damaged ({error}): restore the file from a copy, or remove the line'
                ) from error
            whole = len(b''.join(lines.splitlines(keepends=True)[:number - 1]))
            break
    if whole < len(lines):
        if compressed:
            raise UserError(f'{file} is damaged (its last line is incomplete): restore it from a copy')
        cut = file.with_suffix('.cut')
        replace_file(cut, lambda out: out.write(lines[whole:]))
        os.truncate(file, whole)
        logging.warning(
            '%s ended in %d bytes that are no whole event, as a process leaves them that is killed while it writes; '
            'they were never acknowledged, and lie in %s now', file, len(lines) - whole, cut.name
        )


def _line(event: Event) -> bytes:
    content = json.dumps(event._asdict(), separators=(',', ':')).encode()
    return content[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(content)


def _event(line: bytes) -> Event:
    """Inverse of _line; ValueError where it is not what was written."""
    content, comma, crc = line.rpartition(b',"crc":"')
    content += b'}'
    if not comma or crc != b'%08x"}\n' % zlib.crc32(content):
        raise ValueError('its checksum differs')
    return Event(**json.loads(content))


def _is_event(line: bytes) -> bool:
    try:
        _event(line)
    except ValueError:
        return False
    return True
