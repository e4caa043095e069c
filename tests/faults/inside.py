"""The commands called inside one process, with flags, exit code and output; and a run small enough for hundreds."""
import contextlib
import dataclasses
import importlib
import io
import logging
import os
import signal
import sys
import traceback
from pathlib import Path

import numpy as np
from absl import flags
from absl.testing import flagsaver

from ssd4rec_jax.commands import cli

TINY = (
    '--dataset=interactions', '--data_dir=log.csv', '--workdir=run', '--preset=published', '--set=model.hidden_size=8',
    '--set=model.d_state=4', '--set=model.headdim=4', '--set=model.num_layers=1', '--set=train.log_every=1',
    '--set=train.max_epochs=2', '--set=train.targets_per_step=64', '--set=train.checkpoint_seconds=1e-6',
)
EVALUATE = 'evaluate', '--workdir=run'
_SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@dataclasses.dataclass(frozen=True)
class Done:
    """How a command ended. err holds its warnings too."""

    code: int
    out: str
    err: str

    @property
    def is_traceback(self) -> bool:
        """Whether it ended with an error that is not one of ours; a warning may show a line of code with this word."""
        return 'Traceback (most recent call last)' in self.err + self.out

    @property
    def sentences(self) -> int:
        """How many sentences say what is wrong."""
        return sum(line.startswith('error: ') for line in self.err.splitlines())


def call(command: str, *arguments: str, folder: Path) -> Done:
    """ssd4rec_jax.commands.COMMAND as the command line calls it, in this process and in a folder."""
    main = importlib.import_module(f'ssd4rec_jax.commands.{command}').main
    parsed = flags.FLAGS
    out, err, before = io.StringIO(), io.StringIO(), os.getcwd()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    warnings = logging.StreamHandler(err)
    absl = logging.getLogger('absl')
    absl.addHandler(warnings)
    propagates, absl.propagate = absl.propagate, False
    try:
        os.chdir(folder)
        # Other tests of this process find the flags as they were.
        with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            for flag in parsed:
                parsed[flag].unparse()
            try:
                parsed([command, *arguments])
                code = cli.exit_code(main)
            except flags.Error as error:
                print(f'error: {error}', file=err)
                code = 2
            except SystemExit as end:
                code = int(end.code or 0)
            except Exception:
                traceback.print_exc(file=err)
                code = 1
    finally:
        absl.removeHandler(warnings)
        absl.propagate = propagates
        os.chdir(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Done(code, out.getvalue(), err.getvalue())


def write_log(path: Path, seed: int = 0, users: int = 40, items: int = 12) -> None:
    """A log of users with nine interactions each."""
    rng = np.random.default_rng(seed)
    rows = [
        f'{u},{i},{1_600_000_000 + 600 * t + u}'
        for u in range(users) for t, i in enumerate(rng.integers(0, items, 9))
    ]
    path.write_text('\n'.join(['user_id,item_id,timestamp', *rows]) + '\n')


if __name__ == '__main__':  # for a first look: python -m tests.faults.inside COMMAND FLAGS
    print(call(sys.argv[1], *sys.argv[2:], folder=Path.cwd()))


def refused(done: Done, *texts: str) -> None:
    """The command failed with one sentence, which holds each of these texts."""
    assert done.code == 1 and not done.is_traceback and done.sentences == 1, done
    for text in texts:
        assert text in done.err
