"""Rank a run's held-out items with its best checkpoint: see ssd4rec_jax.commands.evaluate."""
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.evaluate import main

if __name__ == '__main__':
    run(main)
