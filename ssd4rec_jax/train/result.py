"""The report of a finished run: the content of result.json."""
import resource
import sys
from typing import Any

import flax
import jax
import numpy as np

from pallas_kernels.bench.chip import chip_name
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.model.network import parameters_sha256
from ssd4rec_jax.rank.baselines import popularity_ranks, transition_ranks
from ssd4rec_jax.rank.metrics import ranking_metrics
from ssd4rec_jax.train.objective import objective_that_runs
from ssd4rec_jax.train.program import TrainProgram
from ssd4rec_jax.train.progress import TrainProgress

SPLITS = 'valid', 'test'


def make_result(
    program: TrainProgram, progress: TrainProgress, dataset: SequenceDataset, params: dict,
    metrics: dict[str, dict[str, float]], *, ssd_implementation: str | None, checkpoint_wait_seconds: float,
    step_bytes: int | None,
) -> dict[str, Any]:
    """The description of a finished run, as a dict for JSON.

    params: the parameters of the best epoch, as whole NumPy arrays. metrics: the network's metrics for each split,
    'valid' and 'test'. step_bytes: what a device holds while it runs a step, None where this session ran none.
    """
    seconds = max(progress.seconds, 1e-9)
    train = program.config.train
    return {
        'dataset': dataset.name,
        'protocol': dataset.held_out.protocol,
        'objective': objective_that_runs(train.objective, program.objective.every_prefix),
        'loss': train.loss_name(dataset.num_items),
        'ssd_implementation': ssd_implementation,
        **metrics,
        **{
            name: {split: ranking_metrics(ranks(dataset, split)) for split in SPLITS}
            for name, ranks in (('popularity', popularity_ranks), ('transition', transition_ranks))
        },
        'parameters_sha256': parameters_sha256(params),
        'best_epoch': progress.stopping.best_epoch,
        'epochs': progress.epoch,
        'train_seconds': progress.seconds,
        'targets/s': progress.targets / seconds,
        'tokens/s': progress.tokens / seconds,
        'packing_fill': progress.tokens / progress.slots,
        'parameters': int(sum(leaf.size for leaf in jax.tree.leaves(params))),
        'peak_memory_bytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        'step_memory_bytes': step_bytes,
        'machine': chip_name(),
        'backend': jax.default_backend(),
        'devices': program.mesh.size,
        'processes': jax.process_count(),
        'checkpoint_wait_seconds': checkpoint_wait_seconds,
        'versions': {
            'python': sys.version.split()[0], 'jax': jax.__version__, 'flax': flax.__version__,
            'numpy': np.__version__,
        },
        'seed': train.seed,
    }
