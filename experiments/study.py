"""Run a study: see ssd4rec_jax.commands.study."""
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.study import main

if __name__ == '__main__':
    run(main)
