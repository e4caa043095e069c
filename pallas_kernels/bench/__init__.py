"""What the benchmarks share: clocks, the ceilings of the chip, and the peers that ssd_scan is compared with."""
