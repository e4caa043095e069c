"""Which run a training command enters: its folder, its config, and where its data comes from."""
import dataclasses
from pathlib import Path
from typing import NamedTuple

from absl import flags

from ssd4rec_jax.commands.config_flags import CONFIG_FILE, SET, overridden
from ssd4rec_jax.commands.dataset_flags import DATA_DIR, DATASET, prepared_dataset
from ssd4rec_jax.commands.preset_flag import begun_with
from ssd4rec_jax.commands.workdir_flag import WORKDIR
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import SequenceDataset, open_dataset, with_split
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.run.checkpoints import Checkpoints
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.saved_run import read_config

_MORE = 'train.max_epochs=+'


class EnteredRun(NamedTuple):
    """config: the settings that are asked for. prepared: the folder of the run's data where no log is named, else None.

    more_epochs: whether the run goes on for some more epochs, though it may be finished. about: a sentence about the
    settings, '' for those of a run that goes on.
    """

    config: RunConfig
    prepared: Path | None
    more_epochs: bool
    about: str = ''

    def dataset(self) -> tuple[SequenceDataset, Path]:
        """(the prepared data, its folder); the log is needed only where no run has prepared it so."""
        there = open_dataset(self.prepared) if self.prepared else None
        if there is None or self.prepared is None:
            return prepared_dataset(self.config)
        return with_split(there, self.config.data), self.prepared


def workdir_of_run() -> Path:
    """The folder that --workdir names, or runs/DATASET; ConfigError where a file lies there."""
    path = Path(WORKDIR.value or Path('runs') / DATASET.value).resolve()
    if path.exists() and not path.is_dir():
        raise ConfigError(f'the workdir {path} cannot be written: it is a file')
    return path


def entered_run(path: Path, *, restart: bool) -> EnteredRun:
    """The run in the folder `path` by the flags of the command line.

    --workdir without --dataset goes on with the run that lies there, by its own config, and so does
    --set=train.max_epochs=+N, for N epochs more than were trained. Otherwise the data set's preset is the base.
    """
    added = [override for override in SET.value if override.startswith(_MORE)]
    more = _more_epochs(added)
    goes_on = more or (WORKDIR.value and not flags.FLAGS['dataset'].present)
    found = read_config(RunFolder(path)) if goes_on and not restart else None
    if more and found is None:
        raise ConfigError(f'--set={_MORE}{more} goes on with a run, and there is none in {path}')
    if found is None:
        there = None if restart else read_config(RunFolder(path))
        config, about = begun_with(DATASET.value, lambda published: _log(published, there))
        changed = '; then what --set and --config say' if SET.value or CONFIG_FILE.value else ''
        return EnteredRun(overridden(config), None, False, about + changed)
    own, prepared = found
    config = overridden(own, lambda override: override not in added)
    if more:
        config = _longer(config, path, more)
    needs_log = DATA_DIR.value is not None or config.data != own.data
    return EnteredRun(config, None if needs_log else prepared, bool(more))


def _log(published: RunConfig, there: tuple[RunConfig, Path] | None) -> SequenceDataset:
    """The prepared log that settings are fitted to.

    there: the config and the data of a run that lies in the workdir. Its own log decides, so that the same command
    means the same settings; whether the log that is named is the run's is checked later.
    """
    config = overridden(published)
    own = open_dataset(there[1]) if there else None
    return prepared_dataset(config)[0] if own is None else with_split(own, config.data)


def _more_epochs(asked: list[str]) -> int:
    """N of the last of the overrides train.max_epochs=+N; 0 where there is none."""
    if not asked:
        return 0
    text = asked[-1].removeprefix(_MORE)
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ConfigError(f'--set={asked[-1]}: write how many epochs to go on for, as in {_MORE}10')
    return int(text)


def _longer(config: RunConfig, path: Path, more: int) -> RunConfig:
    """The config with so many more epochs; patience grows where it would end them early."""
    meta = Checkpoints(RunFolder(path).checkpoints).newest_meta() or {'epoch': 0, 'stopping': {'worse': 0}}
    patience = max(config.train.patience, meta['stopping']['worse'] + more)
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, max_epochs=meta['epoch'] + more, patience=patience)
    )
