"""One cell of a study: a training and what is kept of it, or a ranking that counts."""
import datetime
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pallas_kernels.bench.chip import chip_name
from ssd4rec_jax.config.run import RunConfig, to_dict
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.examples import test_examples, train_examples, train_histories
from ssd4rec_jax.presets.command import train_command
from ssd4rec_jax.rank.baselines import BASELINES, training_counts
from ssd4rec_jax.rank.evaluation import GROUPINGS, Evaluator
from ssd4rec_jax.rank.report import grouped
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.metrics_log import MetricsLog
from ssd4rec_jax.run.saved_run import load_run
from ssd4rec_jax.study.folder import StudyFolder
from ssd4rec_jax.study.grid import Cell
from ssd4rec_jax.study.statistics import kept_ranks, user_values
from ssd4rec_jax.train.launch import Launch, Prepared, launch
from ssd4rec_jax.train.objective import training_examples

METRICS = tuple(f'{metric}@{k}' for k in (10, 20) for metric in ('HR', 'NDCG', 'MRR'))
PROTOCOLS = 'in', 'out'
# What is taken over from result.json, by its name there and here.
_OF_RESULT = {
    'objective': 'objective', 'loss': 'loss', 'best_epoch': 'best_epoch', 'epochs': 'epochs',
    'train_seconds': 'train_seconds', 'parameters': 'parameters', 'packing_fill': 'packing_fill',
    'tokens/s': 'tokens_per_second', 'step_memory_bytes': 'step_memory_bytes', 'valid': 'valid',
    'versions': 'versions',
}


def run_cell(
    cell: Cell, folder: StudyFolder, prepare: Callable[[Any], Prepared], stop_requested: Callable[[], bool],
    reporter: Reporter,
) -> dict[str, Any] | None:
    """Train or count, rank the test set, keep the record and the ranks, and return the record.

    None where a stop was requested: the training is saved, and the same call goes on with it. The record of a cell:

        cell, row, series, x, seed        what it is (ssd4rec_jax.study.grid)
        network, preset, counted          the network's name, or '' and the name of the ranking that counts
        config, command                   all settings, and the command that trains the same run
        dataset, fingerprint, targets     the log, and how many items of it are tested
        machine, backend, versions, date, seconds    where, when and in how many seconds, compiling included
        test                              {'in', 'out': {metric: value}} with seen items ranked, and left out; where
                                          users have several tested items, each user counts once, and not each item as
                                          in `ssd4rec evaluate`
        ranks                             those of the test items among the first ten (ssd4rec_jax.study.statistics)
        seen_targets                      the share of test items that 'out' leaves out, which count as not found
        by                                {grouping: [{'from', 'to', 'users', 'in', 'out'}]}, NDCG@10 of each quarter
        valid, curve                      validation of the best epoch, and [{'epoch', 'train_seconds', metric: value}]
        objective, loss, epochs, best_epoch, parameters, train_seconds, inference_seconds, tokens_per_second,
        step_memory_bytes, packing_fill   of the training; inference ranks all test items with a compiled program
        follower_weight                   where validation chose it
        interactions_lost                 the share of the interactions of all training histories that
                                          data.max_history or a network's max_length leaves out

    The last six lines, and versions, are absent for a ranking that counts. seconds are those of the process that
    finished the cell, the training before a stop left out.
    """
    started = time.monotonic()
    of_training: dict[str, Any] = {}
    if cell.row.counted:
        dataset, _ = prepare(cell.config)
        baseline = BASELINES[cell.row.counted]
        ranks = {seen: baseline(dataset, 'test', seen_out=seen == 'out') for seen in PROTOCOLS}
        users = dataset.held_out.targets('test').users()
    else:
        result = launch(
            cell.config, folder.run(cell.name), lambda: prepare(cell.config), Launch(), log_is_named=False,
            reporter=reporter, watch_for_stop=lambda: stop_requested,
        )
        if result is None:
            return None
        saved = load_run(folder.run(cell.name))
        dataset = saved.dataset
        evaluator = Evaluator(cell.config, dataset, saved.network, saved.mesh, 'test', followers=saved.followers)
        ranks = {seen: evaluator.ranks(saved.params, seen_out=seen == 'out') for seen in PROTOCOLS}
        users = evaluator.users
        compiled = time.monotonic()
        evaluator.ranks(saved.params, seen_out=False)
        of_training = {name: result[key] for key, name in _OF_RESULT.items()}
        if 'follower_weight' in result:
            of_training['follower_weight'] = result['follower_weight']
        of_training |= {
            'inference_seconds': time.monotonic() - compiled,
            'interactions_lost': interactions_lost(dataset, cell.config),
            'curve': _curve(RunFolder(folder.run(cell.name))),
        }
    per_target = _targets(dataset, users, ranks)
    record = {
        'cell': cell.name, 'row': cell.row.name, 'series': cell.row.series, 'x': cell.row.x, 'seed': cell.seed,
        'network': '' if cell.row.counted else cell.config.model.name, 'preset': cell.row.preset,
        'counted': cell.row.counted, 'config': to_dict(cell.config),
        'command': '' if cell.row.counted else train_command(cell.config),
        'dataset': dataset.name, 'fingerprint': dataset.fingerprint, 'targets': len(users),
        'machine': chip_name(), 'backend': jax.default_backend(), 'date': datetime.date.today().isoformat(),
        'test': {
            seen: {name: float(user_values(ranks[seen], users, name).mean()) for name in METRICS} for seen in PROTOCOLS
        },
        'ranks': kept_ranks(ranks, users), 'seen_targets': float(np.mean(ranks['out'] == 0)),
        'by': {grouping: _quarters(ranks, per_target[grouping]) for grouping in GROUPINGS},
        **of_training, 'seconds': time.monotonic() - started,
    }
    folder.write(cell.name, record, per_target)
    return record


def _targets(dataset: SequenceDataset, users: np.ndarray, ranks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays beside the record (ssd4rec_jax.study.folder)."""
    whole = test_examples(dataset)
    return {
        'users': users.astype(np.int32), 'items': whole.target.astype(np.int32),
        'history_length': whole.lengths.astype(np.int32),
        'item_popularity': training_counts(dataset)[whole.target].astype(np.int32),
        **{seen: rank.astype(np.int32) for seen, rank in ranks.items()},
    }


def interactions_lost(dataset: SequenceDataset, config: RunConfig) -> float:
    """The share of the interactions of all training histories that a configuration does not read."""
    if config.train.objective == 'cloze':  # It reads all windows, but for those of a single item.
        whole = (dataset.held_out.train_stop - dataset.offsets[:-1]).sum()
        read = training_examples('cloze', config.model, dataset, config.data.max_history).lengths
        return 1 - float(read.sum() / whole)
    examples = train_histories if config.train.objective == 'truncated' else train_examples
    lengths = examples(dataset).lengths
    read = np.minimum(lengths, config.data.max_history or lengths)
    read = np.minimum(read, getattr(config.model, 'max_length', lengths))  # a peer's own limit
    return 1 - float(read.sum() / lengths.sum())


def _quarters(ranks: dict[str, np.ndarray], values: np.ndarray) -> list[dict[str, Any]]:
    """NDCG@10 of each quarter of the test items by a value, in both protocols."""
    found = [grouped(ranks[seen], values, (10,)).filter(metric='NDCG@10').to_dicts() for seen in PROTOCOLS]
    return [
        {**{key: seen_in[key] for key in ('from', 'to', 'users')}, 'in': seen_in['value'], 'out': seen_out['value']}
        for seen_in, seen_out in zip(*found, strict=True)
    ]


def _curve(folder: RunFolder) -> list[dict[str, Any]]:
    """The validation of each epoch, and the seconds of training until then."""
    return [
        {key: row[key] for key in row if '@' in key or key in ('epoch', 'train_seconds')}
        for row in MetricsLog(folder.metrics).read() if row['kind'] == 'valid'
    ]
