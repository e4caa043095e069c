"""Rank a run's held-out items with its best checkpoint.

    python -m experiments.evaluate --workdir=RUN [--split=test|valid] [--model_shards=M]

Prints one JSON line with HR, NDCG and MRR at 10 and 20.
"""
import json

from absl import flags

from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.mesh_flags import MODEL_SHARDS
from ssd4rec_jax.commands.output import write_stdout
from ssd4rec_jax.commands.workdir_flag import required_workdir
from ssd4rec_jax.data.examples import test_examples, valid_examples
from ssd4rec_jax.parallel.compilation_cache import enable_compilation_cache
from ssd4rec_jax.rank.ranker import Ranker
from ssd4rec_jax.run.saved_run import load_run

_SPLIT = flags.DEFINE_enum('split', 'test', ['test', 'valid'], 'Which held-out items to rank.')


def main() -> int:
    workdir = required_workdir()
    enable_compilation_cache()
    saved = load_run(workdir, model_shards=MODEL_SHARDS.value)
    config = saved.config
    split, longest = (
        make(saved.dataset, max_history=config.data.max_history)
        for make in ({'test': test_examples, 'valid': valid_examples}[_SPLIT.value], test_examples)
    )
    ranker = Ranker(
        saved.network, saved.mesh, longest,
        targets_per_step=config.train.targets_per_step, tokens_per_row=config.data.tokens_per_row,
    )
    metrics = ranker.metrics(saved.params, split)
    answer = {'dataset': config.dataset, 'split': _SPLIT.value, 'best_epoch': saved.best_epoch, **metrics}
    write_stdout(json.dumps(answer) + '\n')
    return 0


if __name__ == '__main__':
    run(main)
