"""Read a checkpoint of the released model: see ssd4rec_jax.commands.import_."""
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.import_ import main

if __name__ == '__main__':
    run(main)
