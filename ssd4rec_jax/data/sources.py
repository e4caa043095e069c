"""Which file serves a data set: the official archive, else its unpacked folder, else NAME.inter or NAME.inter.gz."""
import dataclasses
import glob
import hashlib
import re
from pathlib import Path
from typing import Any

from ssd4rec_jax.data.download import OnBytes, download
from ssd4rec_jax.data.interactions import Interactions
from ssd4rec_jax.data.log import REFUSE, BadRowPolicy
from ssd4rec_jax.data.raw_file import RawFile, hash_files
from ssd4rec_jax.data.readers import Format, read_frame, read_interactions
from ssd4rec_jax.data.synthetic import SyntheticSource
from ssd4rec_jax.data.tables.formats import GUESS, JsonLinesFormat, TableFormat, TableOptions
from ssd4rec_jax.data.tables.frames import hash_frame
from ssd4rec_jax.errors import ConfigError, DataError

RECBOLE = TableFormat('\t')


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Raw files of one format, read one after another.

    format: how they are written; TableOptions where that is found out.
    parts: what each file is for, 'train', 'valid' or 'test'; () where that is not said.
    """

    name: str
    files: tuple[RawFile, ...]
    format: Format
    policy: BadRowPolicy = REFUSE
    parts: tuple[str, ...] = ()

    def content_hash(self) -> str:
        """sha256 hex over the files as they lie on disk, which members are read and how."""
        digest = hash_files(list(dict.fromkeys(file.path for file in self.files)))
        how = repr(([file.member for file in self.files], self.format))
        # Official data keeps the fingerprint that it had before bad rows could be skipped.
        how += f' {self.policy}' if self.policy.skip else ''
        how += _kept_beside(self.format) + (f' parts {self.parts}' if self.parts else '')
        return hashlib.sha256(f'{digest} {how}'.encode()).hexdigest()

    def read(self) -> Interactions:
        """The raw log; DataError names what is wrong and where."""
        return read_interactions(self.files, self.format, self.policy, self.parts)


def _kept_beside(format: Format) -> str:
    """What the features add to a fingerprint, which stays as it was where there are none."""
    return f' features {format.features}' if format.features else ''


@dataclasses.dataclass(frozen=True)
class FrameSource:
    """A log that lies in memory: a frame of polars or pandas, or a pyarrow.Table.

    name: of the data set, after which its folder is called.
    """

    frame: Any
    options: TableOptions = GUESS
    policy: BadRowPolicy = REFUSE
    name: str = 'interactions'

    def content_hash(self) -> str:
        """sha256 hex over the frame's values and how they are read."""
        how = f'{self.options} {self.policy}{_kept_beside(self.options)}'
        return hashlib.sha256(f'{hash_frame(self.frame)} {how}'.encode()).hexdigest()

    def read(self) -> Interactions:
        """The raw log; DataError names what is wrong and where."""
        return read_frame(self.frame, self.options, self.policy)


@dataclasses.dataclass(frozen=True)
class Official:
    """What is published of a data set.

    address: of the file to download, an archive or the log itself.
    md5, size: its checksum and bytes where known.
    folder: inside the archive, and of its unpacked form; '' where the log itself is published.
    files: of the log, in the order in which they are read.
    format: theirs.
    others: (file name, format) of other published forms that are read where they are there.
    form: regular expression of the first line of the log's first file, where no md5 is published.
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


def _movielens_csv(name: str, md5: str = '') -> Official:
    """MovieLens as published since 2015: a csv with a header, rated movies alone."""
    return Official(
        address=f'https://files.grouplens.org/datasets/movielens/{name}.zip', md5=md5, folder=name,
        files=('ratings.csv',), format=TableFormat(',', 'userId', 'movieId', 'timestamp', numeric_ids=True),
        form='userId,movieId,.*timestamp',
    )


_AMAZON_ROW = '[^,<>]+,[^,<>]+,[0-9.]+,[0-9]+'


def _amazon(category: str, counts: tuple[int, int, int] | None = None) -> Official:
    return Official(
        address=f'https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/ratings_{category}.csv',
        folder='', files=(f'ratings_{category}.csv',),
        format=TableFormat(',', 'user', 'item', 'time', columns=('user', 'item', 'rating', 'time'), order_unsure=True),
        others=((f'reviews_{category}_5.json', JsonLinesFormat('reviewerID', 'asin', 'unixReviewTime')),),
        form=_AMAZON_ROW, counts=counts,
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
    'ml-10m': Official(
        address='https://files.grouplens.org/datasets/movielens/ml-10m.zip',
        md5='ce571fd55effeba0271552578f2648bd', folder='ml-10M100K', files=('ratings.dat',), format=_movielens('::'),
    ),
    'ml-20m': _movielens_csv('ml-20m', 'cd245b17a1ae2cc31bb14903e1204af3'),
    'ml-25m': _movielens_csv('ml-25m', '6b51fb2759a8657d3bfcbfc42b592ada'),
    'ml-32m': _movielens_csv('ml-32m'),
    'amazon-beauty': _amazon('Beauty', (22_363, 12_101, 198_502)),
    'amazon-video-games': _amazon('Video_Games', (24_303, 10_672, 231_780)),
}


AMAZON_CATEGORY = re.compile(r'amazon-(2014|2018|2023)-(\w+)')
_MCAULEY = 'https://mcauleylab.ucsd.edu/public_datasets/data'


def official_set(name: str) -> Official | None:
    """What is published of a data set: one of OFFICIAL, or any category of Amazon's reviews, as amazon-2018-Books."""
    if name in OFFICIAL or not (found := AMAZON_CATEGORY.fullmatch(name)):
        return OFFICIAL.get(name)
    year, category = found.groups()
    if year == '2014':
        return _amazon(category)
    if year == '2018':  # the item stands first
        reviews = JsonLinesFormat('reviewerID', 'asin', 'unixReviewTime')
        return Official(
            address=f'{_MCAULEY}/amazon_v2/categoryFilesSmall/{category}.csv', folder='', files=(f'{category}.csv',),
            format=TableFormat(',', 'user', 'item', 'time', columns=('item', 'user', 'rating', 'time')),
            others=((f'{category}_5.json', reviews), (f'{category}.json', reviews)), form=_AMAZON_ROW,
        )
    return Official(
        address=f'{_MCAULEY}/amazon_2023/benchmark/0core/rating_only/{category}.csv.gz', folder='',
        files=(f'{category}.csv',), format=TableFormat(',', 'user_id', 'parent_asin', 'timestamp'),
        others=((f'{category}.jsonl', JsonLinesFormat('user_id', 'parent_asin', 'timestamp')),),
        form='user_id,parent_asin,.*timestamp',
    )


def find_source(
    name: str, data_dir: str | Path | None = None, *, options: TableOptions = GUESS,
    policy: BadRowPolicy = REFUSE, progress: OnBytes | None = None,
) -> FileSource | SyntheticSource:
    """The source of a data set.

    data_dir: the folder to look in; for 'interactions' the log itself: a file, a folder of files or a pattern
      (logs/*.csv). If None, data/NAME, where the official file is downloaded to if nothing is there yet. 'synthetic'
      is generated and needs none.
    options: of 'interactions' alone. policy: what becomes of bad rows.
    DataError if nothing is found.
    """
    if name == 'interactions':
        return FileSource(name, _named_files(data_dir), options, policy)
    if options != GUESS:
        raise ConfigError(
            f'columns, a separator and the like can be given with --dataset=interactions alone, not with {name}'
        )
    if name == 'synthetic':
        return SyntheticSource()
    official, folder = official_set(name), Path(data_dir or Path('data') / name)
    if official is None:
        raise ConfigError(
            f'--dataset={name} is unknown: choose synthetic, {", ".join(OFFICIAL)}, interactions, or '
            'amazon-YEAR-CATEGORY (2014, 2018, 2023)'
        )
    if folder.is_file():
        if folder.name != official.file_name:
            raise DataError(
                f'--data_dir={folder} is a file: name the folder that holds {official.file_name}, or read a file of '
                'your own '
                'with --dataset=interactions'
            )
        folder = folder.parent
    source = _search(name, official, folder)
    if source is None and data_dir is None:
        download(
            official.address, folder / official.file_name, md5=official.md5, size=official.size, form=official.form,
            member=f'{official.folder}/{official.files[0]}' if official.folder else '', progress=progress,
        )
        source = _search(name, official, folder)
    if source is None:
        what = 'is not a folder that exists' if not folder.is_dir() else 'holds no file of this data set'
        raise DataError(
            f'--data_dir={folder} {what}: put {official.file_name} there (from {official.address}), or {name}.inter'
        )
    return dataclasses.replace(source, policy=policy)


def _search(name: str, official: Official, folder: Path) -> FileSource | None:
    archive = folder / official.file_name
    if official.folder and archive.is_file():
        members = tuple(RawFile(archive, f'{official.folder}/{file}') for file in official.files)
        return FileSource(name, members, official.format)
    # The folder may hold the unpacked one, or be it, or be the one inside it.
    parts = Path(official.folder).parts
    for unpacked in (folder.joinpath(*parts[k:]) for k in range(len(parts) + 1)):
        files = [_plain_or_gzip(unpacked / file) for file in official.files]
        there = [file for file in files if file is not None]
        if len(there) == len(files):
            return FileSource(name, tuple(map(RawFile, there)), official.format)
        if there:
            missing = official.files[files.index(None)]
            raise DataError(f'{unpacked}: {missing} is missing beside the other files of {name}: put it there')
    others: tuple[tuple[str, Format], ...] = (*official.others, (f'{name}.inter', RECBOLE))
    for file_name, format in others:
        if file := _plain_or_gzip(folder / file_name):
            return FileSource(name, (RawFile(file),), format)
    return None


def _plain_or_gzip(path: Path) -> Path | None:
    for candidate in (path, path.with_name(f'{path.name}.gz')):
        if candidate.is_file():
            return candidate
    return None


def _named_files(data_dir: str | Path | None) -> tuple[RawFile, ...]:
    """The files of a log of one's own, in order of their names."""
    if data_dir is None:
        raise DataError(
            '--dataset=interactions needs --data_dir to name the log: a csv, Parquet, JSON lines or .inter file'
        )
    path = Path(data_dir)
    if path.is_dir():
        # Spark and others put markers and checksums beside their parts, with such names.
        found = sorted(p for p in path.rglob('*') if p.is_file() and not any(
            part.startswith(('.', '_')) for part in p.relative_to(path).parts
        ))
        if not found:
            raise DataError(f'--data_dir={path}: the folder is empty: name the log, or the folder that holds it alone')
        if len({''.join(p.suffixes[-2:]) for p in found}) > 1:
            raise DataError(
                f'--data_dir={path}: files of several kinds lie there ({", ".join(p.name for p in found[:4])}): name '
                'the log '
                f'itself, or its files by a pattern such as {path}/*{found[0].suffix}'
            )
    else:
        found = [path] if path.is_file() else [Path(p) for p in sorted(glob.glob(str(path))) if Path(p).is_file()]
    if not found:
        raise DataError(f'--data_dir={path}: no such file; with --dataset=interactions it names the file itself')
    return tuple(map(RawFile, found))
