"""Commands called inside the test process, with their flags as a shell would give them."""
import contextlib
import io
import sys
from collections.abc import Callable
from typing import NamedTuple

from absl import flags
from absl.testing import flagsaver

from ssd4rec_jax.commands.cli import exit_code


class Done(NamedTuple):
    """What a command left: its exit code and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def call(main: Callable[[], int], *arguments: str, stdin: str = '') -> Done:
    """Parse arguments and run a command's main as `cli.run` does, without a new process."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()))
    try:
        with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            flags.FLAGS.unparse_flags()
            flags.FLAGS(['command', *arguments])
            code = exit_code(main)
    finally:
        sys.stdin = before
    return Done(code, out.getvalue(), err.getvalue())
