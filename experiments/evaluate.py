"""Rank a run's held-out items with its best checkpoint.

    python -m experiments.evaluate --workdir=RUN [--split=test|valid]

Prints one JSON line with HR, NDCG and MRR at 10 and 20.
"""
import json

from absl import flags

from experiments.cli import run
from experiments.finished_run import load_run
from experiments.runtime import enable_compilation_cache
from ssd4rec_jax.data.examples import test_examples, valid_examples
from ssd4rec_jax.evaluate import Ranker
from ssd4rec_jax.mesh import device_mesh

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a training run.', required=True)
_SPLIT = flags.DEFINE_enum('split', 'test', ['test', 'valid'], 'Which held-out items to rank.')


def main() -> int:
    enable_compilation_cache()
    loaded = load_run(_WORKDIR.value)
    config = loaded.config
    split, longest = (
        make(loaded.dataset, max_history=config.data.max_history)
        for make in ({'test': test_examples, 'valid': valid_examples}[_SPLIT.value], test_examples)
    )
    ranker = Ranker(
        loaded.network, device_mesh(), longest,
        targets_per_step=config.train.targets_per_step, tokens_per_row=config.data.tokens_per_row,
    )
    metrics = ranker.metrics(loaded.params, split)
    print(json.dumps({'dataset': config.dataset, 'split': _SPLIT.value, 'best_epoch': loaded.best_epoch, **metrics}))
    return 0


if __name__ == '__main__':
    run(main)
