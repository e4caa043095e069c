"""Which file serves a data set: the official archive, else its unpacked folder, else NAME.inter or NAME.inter.gz."""
import dataclasses
import hashlib
from pathlib import Path

from ssd4rec_jax.data.download import OnBytes, download
from ssd4rec_jax.data.interactions import Interactions
from ssd4rec_jax.data.raw_file import RawFile, hash_files
from ssd4rec_jax.data.readers import JsonLinesFormat, TableFormat, read_interactions
from ssd4rec_jax.data.synthetic import SyntheticSource
from ssd4rec_jax.errors import ConfigError, DataError

RECBOLE = TableFormat('\t')
_SEPARATORS = {'.csv': ',', '.tsv': '\t', '.inter': '\t'}


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Raw files of one format, read one after another."""

    name: str
    files: tuple[RawFile, ...]
    format: TableFormat | JsonLinesFormat

    def content_hash(self) -> str:
        """sha256 hex over the files as they lie on disk, which members are read and how."""
        digest = hash_files(list(dict.fromkeys(file.path for file in self.files)))
        how = repr(([file.member for file in self.files], self.format))
        return hashlib.sha256(f'{digest} {how}'.encode()).hexdigest()

    def read(self) -> Interactions:
        return read_interactions(self.files, self.format)


@dataclasses.dataclass(frozen=True)
class Official:
    """What is published of a data set.

    address: of the file to download, an archive or the log itself.
    md5, size: its checksum and bytes where known.
    folder: inside the archive, and of its unpacked form; '' where the log itself is published.
    files: of the log, in the order in which they are read.
    format: theirs.
    others: (file name, format) of other published forms that are read where they are there.
    form: regular expression of the file's first line, where no md5 is published.
    counts: users, items and interactions of the 5-core, where no md5 is published.
    """

    address: str
    folder: str
    files: tuple[str, ...]
    format: TableFormat
    md5: str = ''
    size: int = 0
    others: tuple[tuple[str, JsonLinesFormat], ...] = ()
    form: str = ''
    counts: tuple[int, int, int] | None = None

    @property
    def file_name(self) -> str:
        return self.address.rpartition('/')[2]


_KUAIRAND = TableFormat(',', 'user_id', 'video_id', 'time_ms', numeric_ids=True)
_MOVIELENS_COLUMNS = ('UserID', 'MovieID', 'Rating', 'Timestamp')


def _movielens(separator: str) -> TableFormat:
    return TableFormat(separator, 'UserID', 'MovieID', 'Timestamp', columns=_MOVIELENS_COLUMNS, numeric_ids=True)


def _amazon(category: str, counts: tuple[int, int, int]) -> Official:
    return Official(
        address=f'https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/ratings_{category}.csv',
        folder='', files=(f'ratings_{category}.csv',),
        format=TableFormat(',', 'user', 'item', 'time', columns=('user', 'item', 'rating', 'time')),
        others=((f'reviews_{category}_5.json', JsonLinesFormat('reviewerID', 'asin', 'unixReviewTime')),),
        form='[^,<>]+,[^,<>]+,[0-9.]+,[0-9]+', counts=counts,
    )


OFFICIAL = {
    'kuairand': Official(
        address='https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz',
        md5='0820331067a3784d9691136f772b35a7', size=47_432_272, folder='KuaiRand-Pure/data',
        files=('log_standard_4_08_to_4_21_pure.csv',), format=_KUAIRAND,
    ),
    'kuairand-1k': Official(
        address='https://zenodo.org/records/10439422/files/KuaiRand-1K.tar.gz',
        md5='6b0b9c8222d67fcd4c676218edca3f1f', folder='KuaiRand-1K/data',
        files=('log_standard_4_08_to_4_21_1k.csv', 'log_standard_4_22_to_5_08_1k.csv'), format=_KUAIRAND,
    ),
    'kuairand-27k': Official(
        address='https://zenodo.org/records/10439422/files/KuaiRand-27K.tar.gz',
        md5='3e3c799a24e2d23a4d2c757fbf9adf59', folder='KuaiRand-27K/data',
        files=tuple(
            f'log_standard_{days}_27k_part{part}.csv' for days in ('4_08_to_4_21', '4_22_to_5_08') for part in (1, 2)
        ),
        format=_KUAIRAND,
    ),
    'ml-1m': Official(
        address='https://files.grouplens.org/datasets/movielens/ml-1m.zip',
        md5='c4d9eecfca2ab87c1945afe126590906', folder='ml-1m', files=('ratings.dat',), format=_movielens('::'),
    ),
    'ml-100k': Official(
        address='https://files.grouplens.org/datasets/movielens/ml-100k.zip',
        md5='0e33842e24a9c977be4e0107933c0723', folder='ml-100k', files=('u.data',), format=_movielens('\t'),
    ),
    'amazon-beauty': _amazon('Beauty', (22_363, 12_101, 198_502)),
    'amazon-video-games': _amazon('Video_Games', (24_303, 10_672, 231_780)),
}


def find_source(
    name: str, data_dir: str | Path | None = None, *, user_column: str | None = None, item_column: str | None = None,
    time_column: str | None = None, separator: str | None = None, progress: OnBytes | None = None,
) -> FileSource | SyntheticSource:
    """The source of a data set.

    data_dir: the folder to look in; for 'interactions' the file itself. If None, data/NAME, where the official file
      is downloaded to if nothing is there yet. 'synthetic' is generated and needs none.
    user_column, item_column, time_column, separator: of 'interactions' alone; by default RecBole's names, and the
      separator that the file's ending tells.
    DataError if nothing is found.
    """
    given = {'user': user_column, 'item': item_column, 'time': time_column, 'separator': separator}
    given = {key: value for key, value in given.items() if value is not None}
    if name == 'interactions':
        return _named_file(data_dir, given)
    if given:
        raise ConfigError(f'columns and a separator can be given with --dataset=interactions alone, not with {name}')
    if name == 'synthetic':
        return SyntheticSource()
    if name not in OFFICIAL:
        raise ConfigError(f'--dataset={name} is unknown: choose synthetic, {", ".join(OFFICIAL)} or interactions')
    official, folder = OFFICIAL[name], Path(data_dir or Path('data') / name)
    source = _search(name, official, folder)
    if source is None and data_dir is None:
        download(
            official.address, folder / official.file_name, md5=official.md5, size=official.size, form=official.form,
            progress=progress,
        )
        source = _search(name, official, folder)
    if source is None:
        what = 'is not a folder that exists' if not folder.is_dir() else 'holds no file of this data set'
        raise DataError(
            f'--data_dir={folder} {what}: put {official.file_name} there (from {official.address}), or {name}.inter'
        )
    return source


def _search(name: str, official: Official, folder: Path) -> FileSource | None:
    archive = folder / official.file_name
    if official.folder and archive.is_file():
        members = tuple(RawFile(archive, f'{official.folder}/{file}') for file in official.files)
        return FileSource(name, members, official.format)
    # The folder may hold the unpacked one, or be it, or be the one inside it.
    parts = Path(official.folder).parts
    for unpacked in (folder.joinpath(*parts[k:]) for k in range(len(parts) + 1)):
        files = [_plain_or_gzip(unpacked / file) for file in official.files]
        if all(files):
            return FileSource(name, tuple(map(RawFile, files)), official.format)
        if any(files):
            missing = official.files[files.index(None)]
            raise DataError(f'{unpacked}: {missing} is missing beside the other files of {name}: put it there')
    for file_name, format in (*official.others, (f'{name}.inter', RECBOLE)):
        if file := _plain_or_gzip(folder / file_name):
            return FileSource(name, (RawFile(file),), format)
    return None


def _plain_or_gzip(path: Path) -> Path | None:
    for candidate in (path, path.with_name(f'{path.name}.gz')):
        if candidate.is_file():
            return candidate
    return None


def _named_file(data_dir: str | Path | None, given: dict[str, str]) -> FileSource:
    if data_dir is None:
        raise DataError('--dataset=interactions needs --data_dir to name the csv, tsv or .inter file, plain or gzip')
    path = Path(data_dir)
    if not path.is_file():
        raise DataError(f'--data_dir={path}: no such file; with --dataset=interactions it names the file itself')
    ending = Path(path.name.removesuffix('.gz')).suffix
    separator = given.get('separator', _SEPARATORS.get(ending))
    separator = {'tab': '\t', '\\t': '\t'}.get(separator, separator)
    if separator is None:
        raise DataError(f'{path}: ends neither in .csv, .tsv nor .inter: tell the fields apart with --separator')
    if len(separator) != 1 and not (len(separator) == 2 and separator[0] == separator[1]) or not separator.isascii():
        raise ConfigError(f'--separator={separator!r} must be one character (tab for a tabulator) or one twice (::)')
    quoted = len(separator) == 1 and ending != '.inter'
    columns = {key: value for key, value in given.items() if key != 'separator'}
    return FileSource('interactions', (RawFile(path),), TableFormat(separator, quoted=quoted, **columns))
