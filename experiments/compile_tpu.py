"""Compiles the train step, with its TPU kernels, for a real TPU topology on a machine without a TPU.

    python -m experiments.compile_tpu --topology=v5e:2x2     # also v6e:2x2, v5p:2x2x1

For the kernels alone, run python -m pallas_kernels.compile_tpu, whose figures have the same form.
"""
import sys

from pallas_kernels.compile_tpu import Program, topology_of_flags
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.config.model import ModelConfig
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.packing import StepShape
from ssd4rec_jax.parallel.mesh import device_mesh
from ssd4rec_jax.train.program import TrainProgram


def compile_train_step(devices: list, *, tokens: int = 8192, items: int = 7111, one_pass: bool = False) -> Program:
    """A whole train step of SSD4Rec with the published sizes, compiled with one row of `tokens` tokens per device.

    devices: of a topology, as topology_devices gives them. D is 256; there are 2 layers, or 1 with one_pass.
    """
    model = ModelConfig(num_layers=1 if one_pass else 2, ssd_implementation='pallas_tpu')
    config = RunConfig('kuairand', model, DataConfig(mask_ratio=0.2))
    program = TrainProgram(config, items, device_mesh(devices), every_prefix=one_pass)
    shape = StepShape(len(devices), tokens, tokens // 32)
    form = 'one_pass, 1 layer' if one_pass else 'prefix, 2 layers'
    return Program.compile(
        f'train step ({form}), {len(devices)} devices, a row of {tokens:,} tokens each', lambda: program.lower(shape)
    )


def main() -> int:
    """Compile both forms of the step and print their figures."""
    devices = topology_of_flags(__doc__ or '')
    for one_pass in (False, True):
        print(compile_train_step(devices, one_pass=one_pass), flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
