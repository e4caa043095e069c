"""List every setting: see ssd4rec_jax.commands.settings."""
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.settings import main

if __name__ == '__main__':
    run(main)
