"""Draw the accuracy of every network against its training time, from one or more studies.

    python -m experiments.draw_accuracy --folders=benchmarks/results/study/ml-100k/overall,... --output=PATH

PATH.png and PATH.svg are written, with a line of panels for each folder that `ssd4rec study --output` wrote.
"""
from pathlib import Path

from absl import flags

from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.output_flag import OUTPUT
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.study.figures import draw_accuracy
from ssd4rec_jax.study.folder import StudyFolder
from ssd4rec_jax.study.summary import read_summary

_FOLDERS = flags.DEFINE_list('folders', [], 'Folders of studies, separated by commas.')


def main() -> int:
    if not _FOLDERS.value or not OUTPUT.value:
        raise ConfigError('give --folders, folders of studies, and --output, the picture without its extension')
    written = draw_accuracy([read_summary(StudyFolder(Path(name))) for name in _FOLDERS.value], Path(OUTPUT.value))
    if not written:
        raise ConfigError(f'--folders={",".join(_FOLDERS.value)}: no network has been trained there yet')
    print(*written)
    return 0


if __name__ == '__main__':
    run(main)
