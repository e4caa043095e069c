"""Write a page that shows a run or a study: see ssd4rec_jax.commands.report."""
from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.report import main

if __name__ == '__main__':
    run(main)
