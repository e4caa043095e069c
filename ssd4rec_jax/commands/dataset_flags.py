"""Flags that name a data set and its configuration, shared by the commands that read a log."""
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as ProgressBar

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.log import BadRowPolicy
from ssd4rec_jax.data.prepare import prepare
from ssd4rec_jax.data.sources import OFFICIAL, FileSource, find_source
from ssd4rec_jax.data.split_files import split_files
from ssd4rec_jax.data.synthetic import SyntheticSource
from ssd4rec_jax.data.tables.formats import TableOptions
from ssd4rec_jax.errors import ConfigError, DataError
from ssd4rec_jax.presets import DATASETS

DATASET = flags.DEFINE_string('dataset', 'synthetic', f'One of {", ".join(DATASETS)}.')
DATA_DIR = flags.DEFINE_string(
    'data_dir', None,
    'Folder of the official archive, its unpacked form, NAME.inter or NAME.inter.gz; for --dataset=interactions the '
    'log itself: a file, a folder of files or a pattern. If not given, data/NAME, where the official file is '
    'downloaded to.',
)
_SPLIT_FILES = {
    part: flags.DEFINE_string(
        f'{part}_file', None, f'With --set=data.split=files, the file to {does} with; else found in --data_dir.'
    )
    for part, does in {'train': 'train', 'valid': 'validate', 'test': 'test'}.items()
}
_ONE_S_OWN = 'for --dataset=interactions'
_USER_COLUMN = flags.DEFINE_string('user_column', None, f'Column of user ids, {_ONE_S_OWN}.')
_ITEM_COLUMN = flags.DEFINE_string('item_column', None, f'Column of item ids, {_ONE_S_OWN}.')
_TIME_COLUMN = flags.DEFINE_string(
    'time_column', None, f"Column of times, {_ONE_S_OWN}; 'none' takes the order of the rows."
)
_SEPARATOR = flags.DEFINE_string(
    'separator', None, f"Between fields, {_ONE_S_OWN}: a character, one twice (::), 'tab', or 'space' for blanks."
)
_QUOTE = flags.DEFINE_string('quote', None, f"The character around fields, {_ONE_S_OWN}: '\"' or 'none'.")
_COLUMNS = flags.DEFINE_list(
    'columns', [], f'Names of all columns of a file without a header, {_ONE_S_OWN}: user,item,rating,time.'
)
_ENCODING = flags.DEFINE_string('encoding', None, f'Of the text, {_ONE_S_OWN}, such as latin-1 or utf-16; else UTF-8.')
_TIME_FORMAT = flags.DEFINE_string(
    'time_format', None, f'Of dates that are not ISO 8601, {_ONE_S_OWN}, as strptime writes it: "%d/%m/%Y %H:%M".'
)
_FEATURES = flags.DEFINE_list(
    'features', [], f'Further columns that are kept beside the events, {_ONE_S_OWN}, for networks that read them.'
)
_BAD_ROWS = flags.DEFINE_enum(
    'bad_rows', 'refuse', ['refuse', 'skip'],
    'Rows that cannot be used: refuse the log at the first one, or skip them, count them and list them in a file.',
)
_MAX_BAD_SHARE = flags.DEFINE_float(
    'max_bad_share', 0.01, 'With --bad_rows=skip, refuse the log above this share of bad rows.'
)


def prepared_dataset(config: RunConfig, output: str | None = None) -> tuple[SequenceDataset, Path]:
    """(the data set config.dataset, the folder where it lies prepared); downloads and prepares where needed.

    The flags say where its log lies and how it is read.
    """
    dataset, prepared = prepare(_source(config), config.data, Path(output) if output else None)
    _check_counts(config, dataset)
    return dataset, prepared


def _check_counts(config: RunConfig, dataset: SequenceDataset) -> None:
    """DataError where a file that was downloaded without a checksum does not give the counts of the official one."""
    official = OFFICIAL.get(config.dataset)
    if official is None or official.counts is None or DATA_DIR.value is not None:
        return
    found = dataset.num_users, dataset.num_items, dataset.num_interactions
    published = DataConfig()
    cores = config.data.user_core, config.data.item_core
    if cores == (published.user_core, published.item_core) and found != official.counts:
        users, items, interactions = official.counts
        file = Path('data') / config.dataset / official.file_name
        raise DataError(
            f'{file} is not the official file: it gives {found[0]:,} users, {found[1]:,} items and {found[2]:,} '
            f'interactions, not {users:,}, {items:,} and {interactions:,}. Remove it, and the same command downloads '
            'it again; a log of your own is named by --data_dir'
        )


def _options() -> TableOptions:
    return TableOptions(
        user=_USER_COLUMN.value, item=_ITEM_COLUMN.value, time=_TIME_COLUMN.value, separator=_SEPARATOR.value,
        quote=_QUOTE.value, columns=tuple(name.strip() for name in _COLUMNS.value), encoding=_ENCODING.value,
        time_format=_TIME_FORMAT.value, features=tuple(name.strip() for name in _FEATURES.value),
    )


def _source(config: RunConfig) -> FileSource | SyntheticSource:
    bar = ProgressBar(
        TextColumn('download'), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )
    task = bar.add_task('')

    def progress(here: int, total: int | None) -> None:
        bar.start()
        bar.update(task, completed=here, total=total)

    policy = BadRowPolicy(skip=_BAD_ROWS.value == 'skip', max_share=_MAX_BAD_SHARE.value)
    named = {part: flag.value for part, flag in _SPLIT_FILES.items()}
    if config.data.split == 'files':
        if config.dataset != 'interactions':
            raise ConfigError(f'data.split=files reads --dataset=interactions alone, not {config.dataset}')
        return split_files(DATA_DIR.value, named, options=_options(), policy=policy)
    if any(named.values()):
        raise ConfigError('--train_file, --valid_file and --test_file are read with --set=data.split=files')
    try:
        return find_source(config.dataset, DATA_DIR.value, options=_options(), policy=policy, progress=progress)
    finally:
        if bar.live.is_started:
            bar.stop()
