"""Bytes of a raw file wherever they lie: plain, gzip, or inside a tar.gz or zip archive, never unpacked to disk."""
import contextlib
import dataclasses
import gzip
import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ssd4rec_jax.errors import DataError

BLOCK_BYTES = 32 << 20
# What gzip, tarfile and zipfile raise on a file that is cut short or not what its name says.
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True)
class RawFile:
    """A file, or one member of an archive: `member` is the end of its path inside, such as 'ml-1m/ratings.dat'."""

    path: Path
    member: str = ''

    def __str__(self) -> str:
        return f'{self.path}!{self.member}' if self.member else str(self.path)

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Decompressed bytes as a stream; DataError if the file is missing, unreadable or damaged."""
        try:
            with contextlib.ExitStack() as stack:
                stream, whole = self._open(stack)
                yield stream
                while whole.read(BLOCK_BYTES):  # gzip's checksum stands behind the last byte
                    pass
        except _DAMAGE as error:
            raise DataError(f'{self}: cut short or damaged ({error}): get the file again') from error
        except (RuntimeError, NotImplementedError) as error:  # zipfile's word for a password or an unknown compression
            raise DataError(f'{self}: cannot be unpacked ({error}): unpack it by hand') from error
        except FileNotFoundError as error:
            raise DataError(f'{self.path}: no such file') from error
        except OSError as error:
            raise DataError(f'{self}: cannot be read ({error})') from error

    def _open(self, stack: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes]]:
        """The stream wanted, and the one whose end shows whether all of it was sound."""
        if self.path.suffix == '.zip':
            archive = stack.enter_context(zipfile.ZipFile(self.path))
            for name in filter(self._is_member, archive.namelist()):
                stream = stack.enter_context(archive.open(name))
                return stream, stream
        else:
            open_whole = gzip.open if self.path.suffix == '.gz' else open
            whole = stack.enter_context(open_whole(self.path, 'rb'))
            if not self.member:
                return whole, whole
            archive = stack.enter_context(tarfile.open(fileobj=whole, mode='r|', bufsize=1 << 20))
            for info in archive:
                if self._is_member(info.name) and info.isreg():  # a folder, link or device of that name holds no rows
                    return stack.enter_context(archive.extractfile(info)), whole
        raise DataError(f'{self.path}: the archive holds no {self.member}: get the official archive')

    def _is_member(self, name: str) -> bool:
        return f'/{name}'.endswith(f'/{self.member}')

    def line_blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
        """The file in blocks of whole lines, so that a log larger than memory can be parsed as it streams by."""
        with self.open() as stream:
            rest = b''
            while read := stream.read(block_bytes):
                end = read.rfind(b'\n') + 1
                if end:
                    yield rest + read[:end]
                    rest = read[end:]
                else:
                    rest += read
            if rest:
                yield rest


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
