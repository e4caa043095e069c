"""Measures the plain form of the algorithm and ours in one run, and prints the ratios.

    python -m experiments.benchmark --preset=beauty [--json=FILE] [--set=model.hidden_size=64]

The presets:

beauty, kuairand, ml-100k   train steps, evaluation and the loader, on a random log of the size of that data set
long                        train steps on histories of 1k to 64k items
softmax                     the full-softmax loss, whole and in chunks of the catalogue
kuairand27k                 time and peak memory of preparing a log of that form, measured once
catalogue                   whole runs with 50,000 and 5,000,000 items, one after another
everybody                   recommend --users=all with 5,000,000 items, by one process and by two, on shared tables
weak_scaling                the bytes that 1, 2, 4 and 8 simulated devices send in a step
recommend                   everybody's best items at once, and one user at a time
live                        an event of a history of 10 to 100,000 and the answer after it, beside reading it anew
time_to_quality             seconds to a validation NDCG@10 (--goal) with the presets published, small and best, on a
                            real log (--dataset, --data_dir); with --json=FILE also the curves, in it and as FILE.png

Times are medians of calls that take turns. Figures from different runs must not be compared with one another.
"""
import datetime
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.bench.catalogue import measure_catalogues
from experiments.bench.everybody import measure_everybody
from experiments.bench.large_log import measure_preparation
from experiments.bench.live import measure_live
from experiments.bench.loader import measure_loader
from experiments.bench.long import measure_long
from experiments.bench.recommending import measure_recommending
from experiments.bench.softmax import measure_softmax
from experiments.bench.time_to_quality import draw_curves, measure_time_to_quality
from experiments.bench.training import Forms, measure_evaluation, measure_steps
from experiments.bench.weak_scaling import DEVICES, measure_weak_scaling
from experiments.logs import SHAPES, random_log
from pallas_kernels.bench.chip import chip_name
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.dataset_flags import DATASET, prepared_dataset
from ssd4rec_jax.config.run import RunConfig, apply_overrides
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.files import write_json
from ssd4rec_jax.parallel.compilation_cache import enable_compilation_cache
from ssd4rec_jax.presets import default_config, preset_config

# For each preset, the data set whose configuration it uses, and its changes to it.
CONFIGS = {
    'beauty': ('amazon-beauty', []),
    'kuairand': ('kuairand', []),
    'ml-100k': ('ml-100k', ['model.num_layers=1']),
    'long': ('kuairand', ['model.hidden_size=64']),
    'softmax': ('kuairand', []),
    'kuairand27k': ('kuairand-27k', []),
    'catalogue': ('kuairand', []),
    'everybody': ('kuairand', []),
    'weak_scaling': ('kuairand', []),
    'recommend': ('amazon-beauty', []),
    'live': ('amazon-beauty', ['model.hidden_size=64']),
    'time_to_quality': ('amazon-beauty', []),
}

_PRESETS = 'published', 'small', 'best'
_PRESET = flags.DEFINE_enum('preset', 'beauty', list(CONFIGS), 'What to measure.')
_JSON = flags.DEFINE_string('json', None, 'File to write the figures to.')
_SET = flags.DEFINE_multi_string('set', [], 'Override of a config value, KEY=VALUE such as model.hidden_size=64.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed calls of each measurement; the median counts.', lower_bound=1)
_PLAIN_USERS = flags.DEFINE_integer('plain_users', 2048, 'Users that the plain form ranks.', lower_bound=1)
_GOAL = flags.DEFINE_float('goal', 0.0589, 'time_to_quality: the validation NDCG@10 to reach.', lower_bound=0)
_MINUTES = flags.DEFINE_float('minutes', 10, 'time_to_quality: minutes for each preset.', lower_bound=0)


def main() -> int:
    """Run the command; returns its exit code."""
    if _JSON.value and not Path(_JSON.value).absolute().parent.is_dir():
        raise ConfigError(f'--json={_JSON.value} cannot be written: there is no such folder')
    enable_compilation_cache()
    name, changes = CONFIGS[_PRESET.value]
    config = apply_overrides(default_config(name), [*changes, *_SET.value])
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, 120)  # A narrower table would cut its figures.
    if _PRESET.value == 'weak_scaling':
        jax.config.update('jax_platforms', 'cpu')
        jax.config.update('jax_num_cpu_devices', max(DEVICES))
    chip = chip_name()
    console.print(f'{_PRESET.value} on {len(jax.devices())} x {chip}, JAX {jax.__version__}')
    if _PRESET.value == 'time_to_quality':
        figures = _time_to_quality(console)
    elif _PRESET.value in _ALONE:
        key, measure, table = _ALONE[_PRESET.value]
        figures = {key: measure(config)}
        console.print(table(figures[key]))
    else:
        figures = _measure_log(config, console)
    if _JSON.value:
        machine = {
            'device': chip, 'devices': len(jax.devices()), 'backend': jax.default_backend(),
            'jax': jax.__version__, 'python': platform.python_version(), 'date': datetime.date.today().isoformat(),
        }
        write_json(Path(_JSON.value), {'preset': _PRESET.value, 'overrides': _SET.value, **machine, **figures})
    return 0


def _time_to_quality(console: Console) -> dict:
    dataset, _ = prepared_dataset(default_config(DATASET.value))
    named = {name: preset_config(DATASET.value, name, lambda _: dataset, jax.default_backend)[0] for name in _PRESETS}
    configs = {name: apply_overrides(config, _SET.value) for name, config in named.items()}
    found = measure_time_to_quality(configs, dataset, goal=_GOAL.value, minutes=_MINUTES.value)
    table = Table('preset', 'seconds', 'best validation NDCG@10', 'epochs', title=f'{DATASET.value} to {_GOAL.value}')
    for name, own in found.items():
        seconds = 'not reached' if own['seconds'] is None else f'{own["seconds"]:,.0f}'
        table.add_row(name, seconds, f'{max((row[2] for row in own["curve"]), default=0):.4f}', str(len(own['curve'])))
    console.print(table)
    if _JSON.value:
        draw_curves(found, _GOAL.value, Path(_JSON.value).with_suffix('.png'))
    return {'dataset': DATASET.value, 'goal': _GOAL.value, 'minutes': _MINUTES.value, 'time_to_quality': found}


def _measure_log(config: RunConfig, console: Console) -> dict:
    shape = SHAPES[_PRESET.value]
    dataset = random_log(_PRESET.value, shape)
    forms = Forms.of(config, shape.items)
    figures: dict[str, Any] = {'train': measure_steps(config, dataset, forms, _REPEATS.value)}
    console.print(_train_table(figures['train']))
    figures['evaluation'] = measure_evaluation(config, dataset, forms, _REPEATS.value, _PLAIN_USERS.value)
    console.print(_evaluation_table(figures['evaluation']))
    figures['loader'] = measure_loader(config, dataset, _REPEATS.value)
    console.print(_loader_table(figures['loader']))
    return figures


def _train_table(train: dict) -> Table:
    softmax = train['softmax']
    table = Table(
        'form', 'step', 'epoch', 'targets/s', 'tokens/s', 'memory', 'targets/s against plain', 'against prefix',
        title='train steps',
        caption=f'the softmax loss alone: {1000 * softmax["seconds"]:,.0f} ms, {softmax["share"]:.0%} of a step of '
                f'{softmax["share_of"]}; waiting for data: {train["waiting_share"]:.2%}',
    )
    for form in ('plain', 'prefix', 'one_pass'):
        if form in train:
            f = train[form]
            table.add_row(
                form, f'{1000 * f["step_seconds"]:,.0f} ms', f'{f["epoch_seconds"]:,.1f} s',
                f'{f["targets_per_second"]:,.0f}', f'{f["tokens_per_second"]:,.0f}', _mib(f['memory_bytes']),
                *(_times(f['targets_per_second'], train[other]['targets_per_second']) for other in ('plain', 'prefix')),
            )
    return table


def _evaluation_table(evaluation: dict) -> Table:
    table = Table('form', 'users', 'time', 'users/s', 'users/s against plain', title='evaluation')
    for form, f in evaluation.items():
        table.add_row(
            form, f'{f["users"]:,}', f'{f["seconds"]:.2f} s', f'{f["users_per_second"]:,.0f}',
            _times(f['users_per_second'], evaluation['plain']['users_per_second']),
        )
    return table


def _loader_table(loader: dict) -> Table:
    table = Table(
        '', 'examples/s', 'tokens/s', 'fill', 'against first-fit', title='loader on one core',
        caption=f'an epoch of {loader["steps"]:,} steps is planned in {1000 * loader["plan_seconds"]:.0f} ms',
    )
    for name, title in (('grain_first_fit', "grain's first-fit"), ('loader', 'planned and loaded')):
        f = loader[name]
        table.add_row(
            title, f'{f["examples_per_second"]:,.0f}', f'{f["tokens_per_second"]:,.0f}', f'{f["fill"]:.2%}',
            _times(f['examples_per_second'], loader['grain_first_fit']['examples_per_second']),
        )
    return table


def _preparation_table(preparation: dict) -> Table:
    table = Table(
        'rows', 'files', 'time', 'a million rows', 'peak memory', title='preparation',
        caption=f'{preparation["bytes_a_row"]:.1f} bytes a row: {preparation["true_rows"]:,} rows would take '
                f'{_mib(preparation["planned_bytes"])}',
    )
    for log in preparation['logs']:
        table.add_row(
            f'{log["rows"]:,}', _mib(log['file_bytes']), f'{log["seconds"]:,.1f} s',
            f'{log["seconds_per_million_rows"]:.2f} s', _mib(log['peak_bytes']),
        )
    return table


def _catalogue_table(runs: list[dict]) -> Table:
    table = Table(
        'items', 'loss', 'steps', 'step', 'compilation', 'evaluation', 'checkpoint waits', 'peak memory',
        title='runs of one epoch',
    )
    for figures in runs:
        table.add_row(
            f'{figures["items"]:,}', figures['loss'], f'{figures["steps"]:,}', f'{figures["step_seconds"]:.2f} s',
            f'{figures["compile_seconds"]:.0f} s', f'{figures["evaluation_seconds"]:.1f} s',
            f'{figures["checkpoint_wait_seconds"]:.1f} s', _mib(figures['peak_bytes']),
        )
    return table


def _everybody_table(runs: list[dict]) -> Table:
    table = Table(
        'processes', 'devices of each', 'time', 'CPU time', 'peak memory of each process', 'same items',
        title='recommend --users=all',
    )
    for figures in runs:
        table.add_row(
            str(figures['processes']), str(figures['devices_of_each']), f'{figures["seconds"]:.0f} s',
            f'{figures["cpu_seconds"]:.0f} s', ', '.join(map(_mib, figures['peak_bytes'])),
            f'{figures["same_items"]:.2%}',
        )
    return table


def _weak_scaling_table(steps: list[dict]) -> Table:
    table = Table(
        'loss', 'items', 'devices', 'along model', 'sent by each', 'of which', 'state on each', title='a step'
    )
    for step in steps:
        kinds = ', '.join(f'{kind} {_mib(sent)}' for kind, sent in sorted(step['by_kind'].items()))
        table.add_row(
            step['loss'], f'{step["items"]:,}', str(step['devices']), str(step['model_shards']),
            _mib(step['sent_bytes']), kinds, _mib(step['state_bytes']),
        )
    return table


def _long_table(rows: list[dict]) -> Table:
    table = Table(
        'layers', 'history', 'plain tokens/s', 'ours tokens/s', 'against plain', 'against histories of 1k', 'memory',
        title='train steps on long histories',
    )
    shortest = {row['layers']: row['ours']['tokens_per_second'] for row in reversed(rows)}
    for row in rows:
        ours, plain = row['ours'], row['plain']
        table.add_row(
            str(row['layers']), f'{row["length"]:,}', f'{plain["tokens_per_second"]:,.0f}',
            f'{ours["tokens_per_second"]:,.0f}', _times(ours['tokens_per_second'], plain['tokens_per_second']),
            _times(ours['tokens_per_second'], shortest[row['layers']]), _mib(ours['memory_bytes']),
        )
    return table


def _softmax_table(rows: list[dict]) -> Table:
    table = Table('items', 'scores', 'loss and gradients', 'temporaries', title='full softmax')
    for row in rows:
        seconds = 'does not fit' if row['seconds'] is None else f'{1000 * row["seconds"]:,.0f} ms'
        table.add_row(f'{row["items"]:,}', row['form'], seconds, _mib(row['temporary_bytes']))
    return table


def _recommending_table(figures: dict) -> Table:
    table = Table(
        '', 'time', 'users/s',
        title=f'the top {figures["k"]} of {figures["items"]:,} items for {figures["users"]:,} users',
        caption=f'one user at a time: p50 {1000 * figures["one"]["p50_seconds"]:.1f} ms, p99 '
                f'{1000 * figures["one"]["p99_seconds"]:.1f} ms',
    )
    for form, title in (
        ('ours', 'from histories, seen items left out'),
        ('torch_matmul_topk', "PyTorch's matmul and topk, from vectors"),
    ):
        if form in figures:
            f = figures[form]
            table.add_row(title, f'{f["seconds"]:.2f} s', f'{f["users_per_second"]:,.0f}')
    return table


def _live_table(figures: dict) -> Table:
    table = Table(
        'history', 'an event and the answer', 'an answer without seen items', 'the history read', 'begun', 'difference',
        title=f'the top {figures["k"]} of {figures["items"]:,} items: wall time (CPU time)',
        caption=f'{figures["sessions_together"]} sessions in one call: {_wall_and_cpu(figures["together"])}; a session '
                f'carries {figures["state_bytes"] / 1024:,.0f} KiB',
    )
    for row in figures['histories']:
        table.add_row(f'{row["history"]:,}', *(
            _wall_and_cpu(row[name]) for name in ('event_and_answer', 'answer_without_seen', 'read_anew', 'begin')
        ), f'{row["largest_difference"]:.1e}')
    return table


def _wall_and_cpu(cost: dict) -> str:
    return f'{1000 * cost["seconds"]:,.1f} ms ({1000 * cost["cpu_seconds"]:,.1f} ms)'


def _times(ours: float, other: float) -> str:
    return f'{ours / other:.2f} x'


def _mib(count: int) -> str:
    return f'{count / 2**20:,.0f} MiB'


# Presets that measure one thing: its key in the figures, what measures it, and its table.
_ALONE: dict[str, tuple[str, Callable[[RunConfig], Any], Callable[[Any], Table]]] = {
    'softmax': ('softmax', lambda _: measure_softmax(_REPEATS.value), _softmax_table),
    'kuairand27k': ('preparation', lambda _: measure_preparation(), _preparation_table),
    'catalogue': ('catalogue', measure_catalogues, _catalogue_table),
    'everybody': ('everybody', measure_everybody, _everybody_table),
    'weak_scaling': ('weak_scaling', measure_weak_scaling, _weak_scaling_table),
    'long': ('long', lambda config: measure_long(config, _REPEATS.value), _long_table),
    'live': ('live', lambda config: measure_live(config, _REPEATS.value), _live_table),
    'recommend': (
        'recommend', lambda config: measure_recommending(config, _REPEATS.value), _recommending_table,
    ),
}


if __name__ == '__main__':
    run(main)
