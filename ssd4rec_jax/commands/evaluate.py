"""Rank held-out items with a run's best checkpoint or a saved model.

    ssd4rec evaluate --workdir=RUN [--split=test|valid] [--model_shards=M]
    ssd4rec evaluate --workdir=RUN --k=5,10,20,50 --seen=both --by=history_length
    ssd4rec evaluate --workdir=RUN --k=10 --by=history_length,item_popularity --json
    ssd4rec evaluate --workdir=RUN --per_user=ranks.parquet

Prints one JSON line with HR, NDCG and MRR at 10 and 20. With --k, --seen or --by it prints tables, or all of them as
one JSON line with --json: metrics with their 95% bootstrap intervals over users; coverage, Gini index, novelty (bits)
and tail share of the lists that users are shown; metrics of each quarter of the users.

--seen=out leaves out of each ranking what the user has already done, as a shop does that never shows an item twice. A
held-out item that the user has done before then counts as not found, and the share of these is given (seen_targets with
--json; 0 with --seen=in, which leaves none out). With one held-out item per user recall is HR, and MAP is MRR; where a
split holds out several, recall and MAP are given too, of the list that is shown before the first of them.
"""
import json
from typing import Any

import polars as pl
from absl import flags
from rich.console import Console
from rich.table import Table

from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.k_flag import K, list_lengths
from ssd4rec_jax.commands.mesh_flags import MODEL_SHARDS
from ssd4rec_jax.commands.table_file import check_table_file, write_table
from ssd4rec_jax.commands.workdir_flag import required_workdir
from ssd4rec_jax.errors import ConfigError, UserError
from ssd4rec_jax.parallel.compilation_cache import enable_compilation_cache
from ssd4rec_jax.rank.evaluation import GROUPINGS, SPLITS, Evaluation, Evaluator
from ssd4rec_jax.rank.metrics import CUTOFFS
from ssd4rec_jax.run.saved_run import SavedRun, load_run
from ssd4rec_jax.show.output import write_stdout

SEEN = {'in': ('in',), 'out': ('out',), 'both': ('in', 'out')}
_RANK = {'in': 'rank', 'out': 'rank_seen_out'}  # the column of a table of users

_SPLIT = flags.DEFINE_enum('split', 'test', SPLITS, 'Which held-out items to rank.')
_SEEN = flags.DEFINE_enum(
    'seen', 'in', list(SEEN), 'Whether items of the history are ranked: in (as published tables do), out, or both ways.'
)
_BY = flags.DEFINE_list('by', [], f'Metrics for quarters of the users, by {" or ".join(GROUPINGS)}, or both.')
_PER_USER = flags.DEFINE_string(
    'per_user', None, 'File to write with the rank of each held-out item: .parquet, .csv or .jsonl.'
)
_JSON = flags.DEFINE_bool('json', False, 'Print the tables as one JSON line.')


def main() -> int:
    workdir = required_workdir()
    cutoffs, by = list_lengths(CUTOFFS), _groupings()
    path = check_table_file('--per_user', _PER_USER.value) if _PER_USER.value else None
    enable_compilation_cache()
    saved = load_run(workdir, model_shards=MODEL_SHARDS.value)
    if not saved.dataset.num_users:
        raise UserError(f'the model in {workdir} was saved without histories, so there is nothing to rank')
    if K.value is not None and max(cutoffs) > saved.dataset.num_items:
        raise ConfigError(f'--k={K.value} is beyond the catalogue of {saved.dataset.num_items:,} items')
    evaluator = Evaluator(
        saved.config, saved.dataset, saved.network, saved.mesh, _SPLIT.value, followers=saved.followers
    )
    about = {'dataset': saved.config.dataset, 'split': _SPLIT.value, 'best_epoch': saved.best_epoch}
    in_detail = _JSON.value or K.value is not None or _SEEN.value != 'in' or bool(by)
    if not in_detail and path is None:
        write_stdout(json.dumps({**about, **evaluator.ranker.metrics(saved.params, evaluator.examples)}) + '\n')
        return 0
    found = {
        seen: evaluator.evaluate(saved.params, longest_list=max(cutoffs), seen_out=seen == 'out')
        for seen in SEEN[_SEEN.value]
    }
    if path:
        write_table(path, [_users(saved, found)])
    if not in_detail:
        metrics = found['in'].metrics(cutoffs)
        write_stdout(json.dumps({**about, **dict(zip(metrics['metric'], metrics['value'], strict=True))}) + '\n')
    elif _JSON.value:
        reports = {f'seen_{seen}': _report(evaluation, cutoffs, by) for seen, evaluation in found.items()}
        write_stdout(json.dumps({**about, **reports}) + '\n')
    else:
        console = Console(highlight=False)
        with console.capture() as shown:
            for seen, evaluation in found.items():
                console.print(*_shown(seen, evaluation, cutoffs, by), sep='\n')
        write_stdout(shown.get())
    return 0


def _groupings() -> list[str]:
    by = [name.strip() for name in _BY.value]
    if unknown := [name for name in by if name not in GROUPINGS]:
        raise ConfigError(f'--by={unknown[0]} is unknown: take {" or ".join(GROUPINGS)}, or both, separated by a comma')
    return by


def _users(saved: SavedRun, found: dict[str, Evaluation]) -> pl.DataFrame:
    """One row for each held-out item: user, item, history_length, item_popularity, and its rank, null if not found."""
    any_of = next(iter(found.values()))
    dataset = saved.dataset
    return pl.DataFrame({
        'user': dataset.user_ids[any_of.users].tolist(), 'item': dataset.item_ids[any_of.examples.target - 1].tolist(),
        **{name: any_of.values(name) for name in GROUPINGS},
        **{_RANK[seen]: evaluation.ranks for seen, evaluation in found.items()},
    }).with_columns(pl.col(_RANK[seen]).replace(0, None) for seen in found)


def _report(evaluation: Evaluation, cutoffs: tuple[int, ...], by: list[str]) -> dict[str, Any]:
    """What the tables show, as a dict for JSON."""
    return {
        'targets': len(evaluation.ranks), 'seen_targets': evaluation.seen_targets,
        'metrics': evaluation.metrics(cutoffs).to_dicts(), 'lists': evaluation.list_metrics(cutoffs),
        **{f'by_{name}': evaluation.grouped(name, cutoffs).to_dicts() for name in by},
    }


def _shown(seen: str, evaluation: Evaluation, cutoffs: tuple[int, ...], by: list[str]) -> list[str | Table]:
    """Sentences, and the table that each of them is about."""
    about = f'{len(evaluation.ranks):,} held-out items ({_SPLIT.value}), ranked among ' + (
        'all items:' if seen == 'in' else
        f'the items that the user has not seen; {evaluation.seen_targets:.1%} of the held-out ones were seen and count '
        'as not found:'
    )
    overall = _table(['metric', 'value', '95% interval'])
    for metric, value, low, high in evaluation.metrics(cutoffs).iter_rows():
        overall.add_row(metric, f'{value:.4f}', f'{low:.4f} to {high:.4f}')
    lists = evaluation.list_metrics(cutoffs)
    kinds = list(dict.fromkeys(name.split('@')[0] for name in lists))
    shown = _table(['length', *kinds])
    for k in cutoffs:
        shown.add_row(str(k), *(f'{lists[f"{kind}@{k}"]:.4f}' for kind in kinds))
    groups = [part for name in by for part in (f'By {name}:', _grouped_table(evaluation.grouped(name, cutoffs)))]
    return [about, overall, 'The lists that users are shown:', shown, *groups]


def _grouped_table(frame: pl.DataFrame) -> Table:
    groups = frame.partition_by('from', 'to', maintain_order=True)
    heads = [f'{g["from"][0]:,} to {g["to"][0]:,}\n{g["users"][0]:,} users' for g in groups]
    table = _table(['metric', *heads])
    for row, metric in enumerate(groups[0]['metric']):
        table.add_row(metric, *(f'{group["value"][row]:.4f}' for group in groups))
    return table


def _table(columns: list[str]) -> Table:
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify='right' if number else 'left')
    return table


if __name__ == '__main__':
    run(main)
