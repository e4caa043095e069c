"""study.json: what the finished cells of a study say together."""
import functools
from typing import Any

import numpy as np

from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.files import first_line, parse_json
from ssd4rec_jax.study.cell import METRICS, PROTOCOLS
from ssd4rec_jax.study.folder import StudyFolder
from ssd4rec_jax.study.grid import Cell, Row, Study
from ssd4rec_jax.study.records import read_records
from ssd4rec_jax.study.statistics import difference, kept_values

FORMAT = 2
AGAIN = 'run the command of the study again, which writes it'
# The metric that decides which peer is the best, and those of which differences are given.
DECIDING, COMPARED = 'NDCG@10', ('HR@10', 'NDCG@10', 'MRR@10')
# What is averaged over the seeds of a row, by the name in a cell's record.
COSTS = (
    'parameters', 'epochs', 'best_epoch', 'train_seconds', 'seconds_per_epoch', 'inference_seconds',
    'tokens_per_second', 'step_memory_bytes', 'packing_fill', 'interactions_lost', 'seconds',
)

_Seeds = tuple[tuple[int | None, str], ...]  # the seed and the name of each finished cell of a row


def summarize(study: Study, cells: list[Cell], folder: StudyFolder, command: str) -> dict[str, Any]:
    """The content of study.json. Cells that have not run are there with null in place of figures.

        format, study, about, command    2, the study's name, what it asks, and the command line
        dataset, machines                of the finished cells; null and [] before there are any
        x, values                        the setting that is varied and its values; null and [] where none is
        metrics, protocols               the names of METRICS; 'in' with seen items ranked, 'out' with them left out
        against                          {'in', 'out': the row that all others are compared with; null where there is
                                         none}; the one that the study names, or where no setting is varied the best
                                         peer by test NDCG@10
        best                             {'in', 'out': {metric: the row with the best mean}}
        cells, finished                  how many there are and how many have run
        rows     one for each row, in the order of the study:
          name, series, x                its own name, that of its line in figures, and the value of x or null
          network, counted, preset       the network's name, '' for a ranking that counts, which `counted` names
          settings                       the overrides that make it what it is, as 'key=value'
          cells                          [{'seed': null for a ranking that counts, 'file': of its record,
                                         'finished': bool}]
          test                           {'in', 'out': {metric: {'mean', 'sd', 'n'} over finished seeds, sd null for
                                         one}}, null before a cell has run
          valid                          {metric: as in test} of the best epoch by validation, seen items ranked; null
                                         before a cell has run and for a ranking that counts
          difference                     {'in', 'out': {metric of COMPARED: {'mean', 'low', 'high', 'p', 'seeds'}}} from
                                         `against` (ssd4rec_jax.study.statistics), null where either has not run or
                                         the ranks of either were not kept, and for `against` itself
          cost                           {name of COSTS: mean over finished seeds}, null before a cell has run; a
                                         ranking that counts has 'seconds' alone
          by                             {'history_length', 'item_popularity': [{'from', 'to', 'users', 'in', 'out'}]},
                                         NDCG@10 of each quarter of the test items, null before a cell has run
          curves                         [{'seed', 'points': [[epoch, seconds of training, validation NDCG@10], ...]}]
    """
    by_row: dict[str, list[Cell]] = {}
    for cell in cells:
        by_row.setdefault(cell.row.name, []).append(cell)
    records = read_records(cells, folder)
    finished = [record for record in records.values() if record]
    rows = {name: _row(own, records) for name, own in by_row.items()}
    seeds = {name: tuple((c.seed, c.name) for c in own if records[c.name]) for name, own in by_row.items()}
    against = {seen: _against(study, [own[0].row for own in by_row.values()], rows, seen) for seen in PROTOCOLS}
    for name, row in rows.items():
        row['difference'] = {
            seen: None if other in (None, name) else _differences(folder, seeds[name], seeds[other], seen)
            for seen, other in against.items()
        }
    return {
        'format': FORMAT, 'study': study.name, 'about': study.about, 'command': command,
        'dataset': finished[0]['dataset'] if finished else None,
        'machines': sorted({record['machine'] for record in finished}),
        'x': study.x or None, 'values': list(dict.fromkeys(row['x'] for row in rows.values())) if study.x else [],
        'metrics': list(METRICS), 'protocols': list(PROTOCOLS), 'against': against,
        'best': {seen: {metric: _best(rows, seen, metric) for metric in METRICS} for seen in PROTOCOLS},
        'cells': len(cells), 'finished': len(finished), 'rows': list(rows.values()),
    }


def read_summary(folder: StudyFolder) -> dict[str, Any]:
    """The content of the study.json of a folder; ConfigError where there is none that can be read."""
    try:
        summary = parse_json(folder.summary.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(
            f'{folder.path} holds no study.json: name the folder that `ssd4rec study --output` wrote'
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f'{folder.summary} cannot be read ({first_line(error)}): {AGAIN}') from error
    if summary.get('format') != FORMAT:
        raise ConfigError(f'{folder.summary} is of another version: {AGAIN}')
    return summary


def _row(own: list[Cell], records: dict[str, dict[str, Any] | None]) -> dict[str, Any]:
    row, config = own[0].row, own[0].config
    done = [record for cell in own if (record := records[cell.name])]
    trained = [record for record in done if 'epochs' in record]
    for record in trained:
        record['seconds_per_epoch'] = record['train_seconds'] / record['epochs']
    return {
        'name': row.name, 'series': row.series, 'x': row.x, 'network': '' if row.counted else config.model.name,
        'counted': row.counted, 'preset': row.preset, 'settings': list(row.own),
        'cells': [
            {'seed': cell.seed, 'file': f'cells/{cell.name}.json', 'finished': records[cell.name] is not None}
            for cell in own
        ],
        'test': {
            seen: {metric: _spread([record['test'][seen][metric] for record in done]) for metric in METRICS}
            for seen in PROTOCOLS
        } if done else None,
        'valid': {
            metric: _spread([record['valid'][metric] for record in trained]) for metric in METRICS
        } if trained else None,
        'cost': {
            name: float(np.mean(values)) for name in COSTS
            if (values := [record[name] for record in done if record.get(name) is not None])
        } if done else None,
        'by': {
            grouping: [
                {**quarters[0], **{seen: float(np.mean([quarter[seen] for quarter in quarters])) for seen in PROTOCOLS}}
                for quarters in zip(*(record['by'][grouping] for record in done), strict=True)
            ]
            for grouping in done[0]['by']
        } if done else None,
        'curves': [
            {
                'seed': record['seed'],
                'points': [[point['epoch'], point['train_seconds'], point[DECIDING]] for point in record['curve']],
            }
            for record in trained
        ],
    }


def _spread(values: list[float]) -> dict[str, Any]:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {'mean': float(np.mean(values)), 'sd': sd, 'n': len(values)}


def _against(study: Study, rows: list[Row], found: dict[str, dict[str, Any]], seen: str) -> str | None:
    """The row that the others are compared with: the one that the study names, or the best finished peer. Where a
    setting is varied, what a peer does with one value says nothing of the others."""
    peers = [] if study.x else [row.name for row in rows if row.is_peer]
    names = [study.against] if study.against else peers
    done = {name: found[name]['test'][seen][DECIDING]['mean'] for name in names if found.get(name, {}).get('test')}
    return max(done, key=lambda name: done[name]) if done else None


def _best(rows: dict[str, dict[str, Any]], seen: str, metric: str) -> str | None:
    done = {name: row['test'][seen][metric]['mean'] for name, row in rows.items() if row['test']}
    return max(done, key=lambda name: done[name]) if done else None


@functools.cache  # A study is summed up after each cell, and only one row has changed then.
def _differences(folder: StudyFolder, own: _Seeds, other: _Seeds, seen: str) -> dict[str, Any] | None:
    """{metric: difference of two rows}; None where they have no seeds in common, or no ranks."""
    found = {}
    for metric in COMPARED:
        pairs = _pairs(*(
            {seed: values[seen, metric] for seed, cell in row if (values := _values(folder, cell))}
            for row in (own, other)
        ))
        if pairs is None:
            return None
        found[metric] = {**difference(*pairs)._asdict(), 'seeds': len(pairs[0])}
    return found


@functools.cache
def _values(folder: StudyFolder, cell: str) -> dict[tuple[str, str], np.ndarray] | None:
    """{(protocol, metric): float64 [users]} of a finished cell; None where its ranks were not kept."""
    record = folder.read(cell)
    if record is None or 'ranks' not in record:
        return None
    return {
        (seen, metric): kept_values(record['ranks'], record['targets'], seen, metric)
        for seen in PROTOCOLS for metric in COMPARED
    }


def _pairs(
    own: dict[int | None, np.ndarray], other: dict[int | None, np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """[seeds, users] of both, by the seeds that both have; what has no seed stands beside each of the other's."""
    seeds = [seed for seed in own if seed in other]
    if None in own or None in other:
        seeds = list(own if None in other else other)
    if not seeds:
        return None
    first, second = (np.stack([row[seed if seed in row else None] for seed in seeds]) for row in (own, other))
    return first, second
