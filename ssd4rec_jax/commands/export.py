"""Write a trained model for programs that do without this package.

    ssd4rec export --workdir=RUN --output=DIR
    ssd4rec export --workdir=RUN --output=DIR --format=vectors
    ssd4rec export --workdir=RUN --output=DIR --format=torch

jax, the default: the encoder as StableHLO for CPUs, NVIDIA GPUs and TPUs, weights, item vectors, ids and terms, and
load.py, which answers from them: python DIR/load.py '["item 3", "item 4"]'. vectors: the same, and vectors.npy and an
HNSW index of usearch, whose recall against exact search is printed. torch: weights under the names of the released
PyTorch model. DIR appears whole; only an empty folder or another export is replaced.
"""
from pathlib import Path

from absl import flags

from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.output_flag import OUTPUT
from ssd4rec_jax.commands.workdir_flag import required_workdir
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.export.formats import FORMATS
from ssd4rec_jax.parallel.compilation_cache import enable_compilation_cache
from ssd4rec_jax.run.saved_run import load_run
from ssd4rec_jax.show.output import write_stdout

_FORMAT = flags.DEFINE_enum('format', 'jax', list(FORMATS), 'For which programs.')


def main() -> int:
    workdir = required_workdir()
    if not OUTPUT.value:
        raise ConfigError('give --output, the folder to write')
    enable_compilation_cache()
    said = FORMATS[_FORMAT.value](Path(OUTPUT.value), load_run(workdir))
    write_stdout(f'{OUTPUT.value}: {said}\n')
    return 0


if __name__ == '__main__':
    run(main)
