"""What every command shares: how it starts, how it describes its flags, and how it fails."""
import importlib
import os
import signal
import sys
from collections.abc import Callable
from logging import LogRecord

from absl import app, flags, logging

from ssd4rec_jax.commands.help import help_text, unknown_flag
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.show.output import StdoutClosed, complain, one_line, write_stdout

PLUGS = flags.DEFINE_multi_string(
    'plug', [],
    'Module to import first, which registers a network, a loss or a data set of your own (docs/extending.md).',
)


def run(main: Callable[[], int | None]) -> None:
    """Parse flags, call main, exit with what it returns.

    A UserError is one line on stderr and exit code 1, Ctrl-C is exit code 130. Where the reader of stdout has gone, a
    command ends without a word as if by SIGPIPE, exit code 141.
    """

    def guarded(argv: list[str]) -> int:
        if len(argv) > 1:
            raise app.UsageError(f'unexpected argument {argv[1]!r}: every setting is a --flag=value')
        logging.use_absl_handler()
        logging.set_verbosity(logging.WARNING)
        logging.get_absl_handler().setFormatter(_OneLine())
        return exit_code(main)

    def parse(argv: list[str]) -> list[str]:
        if {'--help', '-help', '-h'} & set(argv[1:]):
            write_stdout(help_text(sys.modules[main.__module__]) + '\n')
            sys.exit(0)
        try:
            return flags.FLAGS(argv)
        except flags.UnrecognizedFlagError as error:
            complain(f'error: {unknown_flag(error.flagname)}')
        except flags.Error as error:
            complain(f'error: {error}')
        complain(f'See {_command_name()} --help')
        sys.exit(2)

    app.run(guarded, flags_parser=parse)


def exit_code(main: Callable[[], int | None]) -> int:
    """Call main with the flags that have been parsed; its exit code, after a line on stderr where it fails."""
    try:
        _import_plugs(PLUGS.value)
        return main() or 0
    except UserError as error:
        complain(f'error: {error}')
        return 1
    except OSError as error:  # of a disk, a network or a file's permissions
        complain(f'error: {error}')
        return 1
    except KeyboardInterrupt:
        complain('interrupted')
        return 128 + signal.SIGINT
    except StdoutClosed:
        return 128 + signal.SIGPIPE


class _OneLine(logging.PythonFormatter):
    """absl's format, in which nothing that a message quotes can forge a line."""

    def format(self, record: LogRecord) -> str:
        record.msg, record.args = one_line(record.getMessage()), None
        return super().format(record)


def _import_plugs(modules: list[str]) -> None:
    if modules and not {'', os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # A console script finds its own folder there instead.
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                f'--plug={module} cannot be imported ({error}): name a module as in an import statement, found from '
                'the current folder or installed'
            ) from error


def _command_name() -> str:
    spec = sys.modules['__main__'].__spec__
    return f'python -m {spec.name}' if spec and not sys.argv[0].startswith('ssd4rec ') else sys.argv[0]
