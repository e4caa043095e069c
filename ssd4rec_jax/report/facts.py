"""What a run's folder says of the run, whether it is finished or not, without opening its model."""
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from ssd4rec_jax.config.run import RunConfig, flat
from ssd4rec_jax.data.dataset import SequenceDataset, open_dataset, with_split
from ssd4rec_jax.errors import CheckpointError, ConfigError
from ssd4rec_jax.presets import fixed_config
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.metrics_log import MetricsLog
from ssd4rec_jax.run.saved_run import read_config


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a run.

    prepared: the folder of its data. records: those of metrics.jsonl. result: the content of result.json, None where
    the run is not finished. data: (what, how much) of its log, () where the prepared data is gone.
    """

    folder: Path
    config: RunConfig
    prepared: Path
    records: list[dict[str, Any]]
    result: dict[str, Any] | None
    data: tuple[tuple[str, str], ...]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The records of metrics.jsonl of one kind: train, valid or test."""
        return [record for record in self.records if record.get('kind') == kind]


def read_facts(folder: RunFolder, data: tuple[tuple[str, str], ...] | None = None) -> Facts:
    """The facts of the run in a folder; CheckpointError where there is none.

    data: that of the run's facts, where it is known already; reading it takes as long as the log is large.
    """
    found = read_config(folder)
    if found is None:
        raise CheckpointError(f'{folder.path} holds no training run (config.json): name the folder of one')
    config, prepared = found
    if data is None:
        dataset = open_dataset(prepared)
        data = () if dataset is None else data_facts(with_split(dataset, config.data))
    records, result = MetricsLog(folder.metrics).read(), folder.result_of_earlier()
    if result and not records:
        logging.warning('%s is gone or empty: there are no curves', folder.metrics)
    return Facts(folder.path, config, prepared, records, result, data)


def data_facts(dataset: SequenceDataset) -> tuple[tuple[str, str], ...]:
    """(what, how much) of a log."""
    lengths, report = dataset.lengths, dataset.report
    facts = [
        ('Users', f'{dataset.num_users:,}'), ('Items', f'{dataset.num_items:,}'),
        ('Interactions', f'{dataset.num_interactions:,}'),
        ('Histories', f'{np.median(lengths):g} items (median), {lengths.min():,} to {lengths.max():,}'),
    ]
    if dataset.time_unit and report:
        facts.append(('Time', f'{report["first_time"]} to {report["last_time"]}'))
    if report:
        facts.append(('Repeats', f'{report["repeats"] / dataset.num_interactions:.1%} of the interactions'))
    return *facts, ('Split', dataset.held_out.protocol)


def changed_settings(config: RunConfig) -> tuple[str, list[tuple[str, Any, Any]]]:
    """(the preset of the data set that is nearest to the config, [(key, value there, value here) where they differ]).

    ('', []) for a data set that has none, as one of a module that was not imported.
    """
    nearest: tuple[str, list[tuple[str, Any, Any]]] | None = None
    own = flat(config)
    for preset in ('published', 'best', 'small'):
        try:
            there = flat(fixed_config(config.dataset, preset)[0])
        except ConfigError:
            continue
        differ = [(k, there.get(k, ''), own.get(k, '')) for k in {**there, **own} if there.get(k) != own.get(k)]
        if nearest is None or len(differ) < len(nearest[1]):
            nearest = preset, differ
    return nearest or ('', [])
