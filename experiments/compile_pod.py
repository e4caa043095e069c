"""Compiles a train step for a TPU pod without one, and reports memory, collectives, operations and projected time.

    python -m experiments.compile_pod --topology=v5e:16x16 --dataset=kuairand
    python -m experiments.compile_pod --topology=v5e:16x16 --dataset=kuairand-27k --model_shards=16

It needs libtpu (pip install "ssd4rec-jax[tpu]") but no data: the shape of the step follows from the configuration and
from the published size of the data set, and what was assumed is printed. The exit code is 1 where the step does not fit
into the memory of a chip. Times are computed from the chip's published peak rates alone, so a real step takes longer.
"""
import importlib.metadata
import importlib.util
import time
from pathlib import Path

import jax
from absl import flags

from experiments.compiled.collectives import collectives
from experiments.compiled.step import pod_devices, trace_step
from experiments.compiled.work import work_of
from experiments.pod.assumed import assumed_step
from experiments.pod.chips import chip_of
from experiments.pod.memory import compile_or_refusal
from experiments.pod.projection import project
from experiments.pod.report import Report
from experiments.published import published
from pallas_kernels.compiled.hbm import hbm_bytes
from pallas_kernels.compiled.hlo import Module
from ssd4rec_jax.commands import cli
from ssd4rec_jax.config.run import apply_overrides
from ssd4rec_jax.errors import ConfigError, UserError
from ssd4rec_jax.files import write_json
from ssd4rec_jax.presets import default_config

_TOPOLOGY = flags.DEFINE_string('topology', 'v5e:16x16', 'TPU topology, such as v5e:2x2, v6e:4x4 or v5p:2x2x1.')
_DATASET = flags.DEFINE_string('dataset', 'kuairand', 'Data set whose configuration and published size are taken.')
_MODEL_SHARDS = flags.DEFINE_integer('model_shards', 1, 'Chips that share the item table.', lower_bound=1)
_TOKENS = flags.DEFINE_integer(
    'tokens_per_row', 0, 'Tokens of a row, a multiple of 16; 0 as training would choose.', lower_bound=0
)
_ROWS = flags.DEFINE_integer('rows_per_device', 0, 'Rows on each chip; 0 as training would choose.', lower_bound=0)
_SET = flags.DEFINE_multi_string('set', [], 'Override of a config value, KEY=VALUE such as model.num_layers=1.')
_JSON = flags.DEFINE_string('json', None, 'File to write the figures to.')


def main() -> int:
    """Run the command; returns its exit code."""
    if _JSON.value and not Path(_JSON.value).absolute().parent.is_dir():
        raise ConfigError(f'--json={_JSON.value} cannot be written: there is no such folder')
    chip, log = chip_of(_TOPOLOGY.value), published(_DATASET.value)
    config = apply_overrides(default_config(_DATASET.value), _SET.value)
    if importlib.util.find_spec('libtpu') is None:
        raise UserError('compiling for a TPU needs libtpu: pip install "ssd4rec-jax[tpu]"')
    jax.config.update('jax_platforms', 'cpu')  # No TPU is used, and libtpu may be locked.
    devices = pod_devices(_TOPOLOGY.value)
    assumed = assumed_step(
        log, config, len(devices), tokens_per_row=_TOKENS.value, rows_per_device=_ROWS.value
    )
    started = time.monotonic()
    step = trace_step(config, log.items, assumed.shape, devices, _MODEL_SHARDS.value)
    compiled, memory = compile_or_refusal(step.lowered, chip.usable_hbm, step.waiting_bytes)
    report = Report(
        _TOPOLOGY.value, _DATASET.value, chip, len(devices), _MODEL_SHARDS.value, assumed, step.coordinates,
        step.state_bytes, memory, work_of(step.jaxpr), time.monotonic() - started,
    )
    if compiled is not None:
        module = Module.parse(compiled.as_text() or '')
        found, moved = collectives(module, len(devices)), hbm_bytes(module)
        report = report._replace(
            collectives=found, unknown_loops=module.loops().count(None), hbm_bytes=moved,
            accessed_bytes=(compiled.cost_analysis() or {})['bytes accessed'],
            projection=project(chip, report.work.mxu, moved, found, step.coordinates),
        )
    print(report)
    if _JSON.value:
        versions = {'jax': jax.__version__, 'libtpu': importlib.metadata.version('libtpu')}
        write_json(Path(_JSON.value), report.to_json() | versions)
    return 0 if memory.fits else 1


if __name__ == '__main__':
    cli.run(main)
