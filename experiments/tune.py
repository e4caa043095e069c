"""Search for better settings: see ssd4rec_jax.commands.tune."""
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.tune import main

if __name__ == '__main__':
    run(main)
