"""What every command shares: how it starts and how it fails."""
import signal
import sys
from collections.abc import Callable

from absl import app, flags, logging

from ssd4rec_jax.errors import UserError


def run(main: Callable[[], int | None]) -> None:
    """Parse flags, call main, exit with what it returns.

    A UserError is one line on stderr and exit code 1, Ctrl-C is exit code 130.
    """

    def guarded(argv: list[str]) -> int:
        if len(argv) > 1:
            raise app.UsageError(f'unexpected argument {argv[1]!r}: every setting is a --flag=value')
        logging.use_absl_handler()
        logging.set_verbosity(logging.WARNING)
        try:
            return main() or 0
        except UserError as error:
            print(f'error: {error}', file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print('interrupted', file=sys.stderr)
            return 128 + signal.SIGINT

    def parse(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            print(f'error: {error}\nSee python -m {_module_name()} --help', file=sys.stderr)
            sys.exit(2)

    app.run(guarded, flags_parser=parse)


def _module_name() -> str:
    spec = sys.modules['__main__'].__spec__
    return spec.name if spec else sys.argv[0]
