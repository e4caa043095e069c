"""ssd_scan's memory grows linearly with length, by XLA's own account of the compiled gradient."""
from pallas_kernels.memory import LENGTHS, temporary_bytes
from pallas_kernels.ssd.workloads import WORKLOADS


def test_temporaries_are_linear_in_length_and_hold_no_quadratic_or_state_array():
    sizes = {WORKLOADS[name].length: temporary_bytes(WORKLOADS[name]) for name in LENGTHS}
    short, middle, long = sizes
    assert (short, middle, long) == (4096, 16384, 65536)
    assert sizes[middle] <= 1.05 * 4 * sizes[short]
    assert sizes[long] <= 1.05 * 4 * sizes[middle]
    w = WORKLOADS[LENGTHS[-1]]
    every_state = 4 * w.length * w.heads * w.headdim * w.state
    assert sizes[long] < every_state / 8
    assert sizes[long] < 4 * w.length * w.length / 8
