"""Compile KuaiRand's train and evaluation steps for an H100 or H200 with XLA's GPU compiler, without a GPU.

    python -m experiments.compile_gpu --target=h100     # also h200; --only='train prefix' compiles these alone

For the operation alone, and for what the figures are, see python -m pallas_kernels.compile_gpu. The steps have the
sizes of the published configuration in bfloat16; the limits are in compile_gpu.toml beside this file.
"""
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from experiments.pod.assumed import assumed_step
from experiments.published import published
from pallas_kernels.compile_gpu import Lower, run
from pallas_kernels.target import tracing_for
from ssd4rec_jax.config.run import RunConfig, apply_overrides
from ssd4rec_jax.data.packing import StepShape
from ssd4rec_jax.parallel.mesh import device_mesh, token_multiple
from ssd4rec_jax.presets import default_config
from ssd4rec_jax.rank.metrics import ranks
from ssd4rec_jax.rank.scorer import Prepared, Scorer
from ssd4rec_jax.train.program import TrainProgram

LOG = published('kuairand')
ONE_PASS = ('train.objective=one_pass', 'model.bidirectional=last')  # All layers read forward, except for the last one.
KERNELS = 'pallas_gpu', 'pallas_gpu_fused'


def kuairand_programs(device: jax.Device) -> Iterator[tuple[str, Lower]]:
    """The train step with each implementation of the scan, that of one_pass, and the evaluation step."""
    for form, changes in {'prefix': (), 'one_pass': ONE_PASS}.items():
        for name in (*KERNELS, 'xla') if form == 'prefix' else KERNELS:
            yield f'train {form} {name}', functools.partial(train_step, _config(name, *changes), device)
    for name in KERNELS:
        yield f'evaluate {name}', functools.partial(evaluation_step, _config(name), device)


def _config(implementation: str, *changes: str) -> RunConfig:
    changes = ('model.dtype=bfloat16', f'model.ssd_implementation={implementation}', *changes)
    return apply_overrides(default_config('kuairand'), list(changes))


def train_step(config: RunConfig, device: jax.Device) -> jax.stages.Lowered:
    """A whole train step, of the shape that training would choose."""
    every_prefix = config.train.objective == 'one_pass'
    program = TrainProgram(config, LOG.items, device_mesh([device]), every_prefix=every_prefix)
    return program.lower(_shape(program))


def evaluation_step(config: RunConfig, device: jax.Device) -> jax.stages.Lowered:
    """A step that ranks the items, with rows as long as in training on prefixes."""
    config = apply_overrides(config, ['train.objective=prefix'])
    program = TrainProgram(config, LOG.items, device_mesh([device]), every_prefix=False)
    _, batch, *_ = program.abstract_arguments(_shape(program))
    with tracing_for('gpu'):
        table = jax.eval_shape(lambda params: program.network.bind(params).item_table(), program.like.params)
        scorer = Scorer(program.network, program.mesh)
        return scorer.lower(ranks, Prepared(program.like.params, table, None), (batch, (batch.targets,)))


def _shape(program: TrainProgram) -> StepShape:
    return assumed_step(LOG, program.config, 1, token_multiple=token_multiple(program.mesh)).shape


if __name__ == '__main__':
    sys.exit(run(kuairand_programs, Path(__file__).with_suffix('.toml'), __doc__ or ''))
