"""Prepare a data set and describe it: see ssd4rec_jax.commands.prepare."""
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.prepare import main

if __name__ == '__main__':
    run(main)
