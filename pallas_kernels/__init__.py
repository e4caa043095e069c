"""Accelerator kernels on plain JAX arrays. Knows no Flax, no data and no model."""
from pallas_kernels.ssd.api import ssd_scan
from pallas_kernels.ssd.readout import ssd_readout, ssd_weights_from_start
from pallas_kernels.ssd.segments import running_sum

__all__ = ['running_sum', 'ssd_readout', 'ssd_scan', 'ssd_weights_from_start']
