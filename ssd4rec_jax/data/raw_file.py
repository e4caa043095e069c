"""Bytes of a raw file wherever they lie: plain, compressed, or inside a tar.gz or zip archive, never unpacked to disk.

What a file is, its first bytes say, not the ending of its name.
"""
import bz2
import contextlib
import dataclasses
import gzip
import hashlib
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ssd4rec_jax.errors import DataError

BLOCK_BYTES = 16 << 20
# What gzip, tarfile and zipfile raise on a file that is cut short or not what its name says.
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError)
_MAGIC = {
    b'\x1f\x8b': 'gzip', b'\x28\xb5\x2f\xfd': 'zstd', b'PK\x03\x04': 'zip', b'PK\x05\x06': 'zip', b'BZh': 'bz2',
    b'\xfd7zXZ\x00': 'xz', b'PAR1': 'parquet',
}


@dataclasses.dataclass(frozen=True)
class RawFile:
    """A file, or one member of an archive: `member` is the end of its path inside, such as 'ml-1m/ratings.dat'.

    A zip archive without a member named has to hold one file alone.
    """

    path: Path
    member: str = ''

    def __str__(self) -> str:
        return f'{self.path}!{self.member}' if self.member else str(self.path)

    def kind(self) -> str:
        """'gzip', 'zstd', 'zip', 'bz2', 'xz', 'parquet', or '' for anything else, by the file's first bytes."""
        with _explained(self), open(self.path, 'rb') as file:
            start = file.read(8)
        return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), '')

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Decompressed bytes as a stream; DataError if the file is missing, unreadable or damaged."""
        kind = self.kind()
        with _explained(self), contextlib.ExitStack() as stack:
            stream, whole = self._open(kind, stack)
            yield stream
            while whole.read(BLOCK_BYTES):  # gzip's checksum stands behind the last byte
                pass

    def _open(self, kind: str, stack: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes]]:
        """The stream wanted, and the one whose end shows whether all of it was sound."""
        if kind == 'zip':
            archive = stack.enter_context(zipfile.ZipFile(self.path))
            stream = stack.enter_context(archive.open(self._zip_member(archive.namelist())))
            return stream, stream
        if kind == 'parquet':
            raise DataError(f'{self}: is a Parquet file where lines of text are expected')
        whole = stack.enter_context(_decompressed(self.path, kind))
        if not self.member:
            return whole, whole
        # The caller's stack closes it.
        tar = stack.enter_context(tarfile.open(fileobj=whole, mode='r|', bufsize=1 << 20))  # noqa: SIM115
        for info in tar:
            # A folder, link or device of that name holds no rows.
            if self._is_member(info.name) and info.isreg() and (member := tar.extractfile(info)) is not None:
                return stack.enter_context(member), whole
        raise DataError(f'{self.path}: the archive holds no {self.member}: get the official archive')

    def _zip_member(self, names: list[str]) -> str:
        if self.member:
            if found := [name for name in names if self._is_member(name)]:
                return found[0]
            raise DataError(f'{self.path}: the archive holds no {self.member}: get the official archive')
        if 'xl/workbook.xml' in names:
            raise DataError(f'{self.path}: is an Excel workbook: save the sheet as csv')
        files = [name for name in names if not name.endswith('/') and not name.startswith('__MACOSX/')]
        if len(files) != 1:
            raise DataError(
                f'{self.path}: is a zip archive of {len(files)} files ({", ".join(files[:3])} ...): unpack it and name '
                'the file of the log'
            )
        return files[0]

    def _is_member(self, name: str) -> bool:
        return f'/{name}'.endswith(f'/{self.member}')

    def chunks(self) -> Iterator[bytes]:
        """The decompressed bytes, BLOCK_BYTES at a time."""
        with self.open() as stream:
            while chunk := stream.read(BLOCK_BYTES):
                yield chunk


@contextlib.contextmanager
def _explained(file: RawFile) -> Iterator[None]:
    """What goes wrong with a file's bytes as a DataError."""
    try:
        yield
    except _DAMAGE as error:
        raise DataError(f'{file}: cut short or damaged ({error}): get the file again') from error
    except (RuntimeError, NotImplementedError) as error:  # zipfile's word for a password or an unknown compression
        raise DataError(f'{file}: cannot be unpacked ({error}): unpack it by hand') from error
    except FileNotFoundError as error:
        raise DataError(f'{file.path}: no such file') from error
    except OSError as error:
        raise DataError(f'{file}: cannot be read ({error})') from error


def _decompressed(path: Path, kind: str) -> IO[bytes]:
    if kind == 'zstd':
        return _zstd(path)
    opened: IO[Any] = {'gzip': gzip.open, 'bz2': bz2.open, 'xz': lzma.open}.get(kind, open)(path, 'rb')  # type: ignore
    return opened


def _zstd(path: Path) -> IO[bytes]:
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            f"{path}: is compressed with zstd, which is read with pyarrow: pip install 'ssd4rec-jax[frames]', or "
            'decompress it first'
        ) from error
    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), 'zstd'))


def hash_files(paths: list[Path]) -> str:
    """sha256 hex over the bytes of some files as they lie on disk, compressed or not."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with open(path, 'rb') as file:
                digest.update(hashlib.file_digest(file, 'sha256').digest())
        except OSError as error:
            raise DataError(f'{path}: cannot be read ({error})') from error
    return digest.hexdigest()
