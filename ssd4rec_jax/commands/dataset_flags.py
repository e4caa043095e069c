"""Flags that name a data set and its configuration, shared by the commands that read a log."""
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as ProgressBar

from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.run import RunConfig, apply_overrides
from ssd4rec_jax.presets import DATASETS, default_config
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.prepare import prepare
from ssd4rec_jax.data.sources import OFFICIAL, FileSource, find_source
from ssd4rec_jax.errors import DataError
from ssd4rec_jax.data.synthetic import SyntheticSource

DATASET = flags.DEFINE_string('dataset', 'synthetic', f'One of {", ".join(DATASETS)}.')
DATA_DIR = flags.DEFINE_string(
    'data_dir', None,
    'Folder of the official archive, its unpacked form, NAME.inter or NAME.inter.gz; the file itself for '
    '--dataset=interactions. If not given, data/NAME, where the official file is downloaded to.',
)
_SET = flags.DEFINE_multi_string('set', [], 'Override of a config value, KEY=VALUE such as model.num_layers=1.')
_USER_COLUMN = flags.DEFINE_string('user_column', None, 'Column of user ids, for --dataset=interactions.')
_ITEM_COLUMN = flags.DEFINE_string('item_column', None, 'Column of item ids, for --dataset=interactions.')
_TIME_COLUMN = flags.DEFINE_string('time_column', None, 'Column of times, for --dataset=interactions.')
_SEPARATOR = flags.DEFINE_string('separator', None, "Between fields, for --dataset=interactions; 'tab' is a tabulator.")


def configured() -> RunConfig:
    """The data set's configuration with the command line's overrides."""
    return apply_overrides(default_config(DATASET.value), _SET.value)


def prepared_dataset(config: RunConfig, output: str | None = None) -> tuple[SequenceDataset, Path]:
    """(the data set that the flags name, the folder where it lies prepared); downloads and prepares where needed."""
    dataset, prepared = prepare(_source(), config.data, output)
    _check_counts(config, dataset)
    return dataset, prepared


def _check_counts(config: RunConfig, dataset: SequenceDataset) -> None:
    """DataError where a file that was downloaded without a checksum does not give the counts of the official one."""
    official = OFFICIAL.get(DATASET.value)
    if official is None or official.counts is None or DATA_DIR.value is not None:
        return
    found = dataset.num_users, dataset.num_items, dataset.num_interactions
    if config.data.min_interactions == DataConfig().min_interactions and found != official.counts:
        users, items, interactions = official.counts
        file = Path('data') / DATASET.value / official.file_name
        raise DataError(
            f'{file} is not the official file: it gives {found[0]:,} users, {found[1]:,} items and {found[2]:,} interactions, '
            f'not {users:,}, {items:,} and {interactions:,}. Remove it, and the same command downloads it again; a log of '
            f'your own is named by --data_dir'
        )


def _source() -> FileSource | SyntheticSource:
    bar = ProgressBar(
        TextColumn('download'), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )
    task = bar.add_task('')

    def progress(here: int, total: int | None) -> None:
        bar.start()
        bar.update(task, completed=here, total=total)

    try:
        return find_source(
            DATASET.value, DATA_DIR.value, user_column=_USER_COLUMN.value, item_column=_ITEM_COLUMN.value,
            time_column=_TIME_COLUMN.value, separator=_SEPARATOR.value, progress=progress,
        )
    finally:
        if bar.live.is_started:
            bar.stop()
