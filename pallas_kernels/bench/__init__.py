"""What benchmarks share: clocks, ceilings of the chip, peers."""
