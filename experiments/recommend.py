"""Recommend next items with a run's best checkpoint: see ssd4rec_jax.commands.recommend."""
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.recommend import main

if __name__ == '__main__':
    run(main)
