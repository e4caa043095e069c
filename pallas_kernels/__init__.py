"""Accelerator kernels on plain JAX arrays. This package imports neither Flax nor the data and model packages."""
from pallas_kernels.installed import refuse_two_versions
from pallas_kernels.ssd.api import ssd_scan
from pallas_kernels.ssd.readout import ssd_readout, ssd_weights_from_start
from pallas_kernels.ssd.segments import running_sum
from pallas_kernels.ssd.step import ssd_step
from pallas_kernels.sums import add_rows, take_rows
from pallas_kernels.target import tracing_for

__all__ = [
    'add_rows', 'running_sum', 'ssd_readout', 'ssd_scan', 'ssd_step', 'ssd_weights_from_start', 'take_rows',
    'tracing_for',
]

refuse_two_versions()
