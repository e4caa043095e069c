"""Search for better settings on a log; validation alone decides.

    ssd4rec tune --dataset=ml-100k --study=runs/tuned --trials=30 --minutes=60
    ssd4rec train --dataset=ml-100k --config=runs/tuned/best.toml

The same command again goes on with the search, and several processes may search in one folder at once. The folder holds
study.db (Optuna's, in SQLite), the runs of the trials, and best.toml, the best settings so far.
"""
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.config_flags import overridden
from ssd4rec_jax.commands.dataset_flags import DATASET, prepared_dataset
from ssd4rec_jax.commands.preset_flag import begun_with
from ssd4rec_jax.commands.study_flags import MINUTES, SPACE, STUDY
from ssd4rec_jax.parallel.compilation_cache import enable_compilation_cache
from ssd4rec_jax.train.stop_signals import StopSignals
from ssd4rec_jax.tune.search import Found, search
from ssd4rec_jax.tune.space import DEFAULT, read_space

_TRIALS = flags.DEFINE_integer('trials', 30, 'Trials of the search altogether.', lower_bound=1)


def main() -> int:
    console = Console(highlight=False)
    enable_compilation_cache()
    config, about = begun_with(DATASET.value, lambda published: prepared_dataset(overridden(published))[0])
    base = overridden(config)
    space = read_space(Path(SPACE.value) if SPACE.value else DEFAULT, base)
    folder = Path(STUDY.value or Path('runs') / f'{DATASET.value}-study').resolve()
    console.print(f'study: {folder}\n{about}')
    signals = StopSignals()
    found = search(
        base, space, folder, prepared_dataset, trials=_TRIALS.value, minutes=MINUTES.value,
        stop_requested=signals.requested, told=console.print,
    )
    if found:
        console.print(_table(found, space))
        console.print(f'{folder / "best.toml"} has the best settings: ssd4rec train --config={folder / "best.toml"}')
    if signals.requested():
        console.print('stopped: the same command goes on with the search')
        return signals.exit_code
    return 0


def _table(found: Found, space: dict) -> Table:
    table = Table(
        'setting', 'best', 'importance', title=f'validation NDCG@10 {found.value:.4f}, {found.trials} trials',
    )
    for key in sorted(space, key=lambda key: -found.importance.get(key, 0)):
        section, _, name = key.partition('.')
        share = f'{found.importance[key]:.0%}' if key in found.importance else ''
        table.add_row(key, str(getattr(getattr(found.config, section), name)), share)
    return table


if __name__ == '__main__':
    run(main)
