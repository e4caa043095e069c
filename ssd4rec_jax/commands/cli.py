"""What every command shares: how it starts, how it describes its flags, and how it fails."""
import importlib
import signal
import sys
from collections.abc import Callable

from absl import app, flags, logging

from ssd4rec_jax.errors import UserError

PLUGS = flags.DEFINE_multi_string(
    'plug', [], 'Module to import first, which registers a network, a loss or a data set of your own (docs/extending.md).'
)


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
            for module in PLUGS.value:
                _import_plug(module)
            return main() or 0
        except UserError as error:
            print(f'error: {error}', file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print('interrupted', file=sys.stderr)
            return 128 + signal.SIGINT

    def parse(argv: list[str]) -> list[str]:
        if {'--help', '-help', '-h'} & set(argv[1:]):
            print(_help(sys.modules[main.__module__].__doc__ or ''))
            sys.exit(0)
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            print(f'error: {error}\nSee python -m {_module_name()} --help', file=sys.stderr)
            sys.exit(2)

    app.run(guarded, flags_parser=parse)


def _import_plug(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f'--plug={module} cannot be imported ({error}): name a module as in an import statement, found from the '
            'current folder or installed'
        ) from error


def _help(text: str) -> str:
    """A command's description and its flags, by the file that defines them; nothing of other packages' flags."""
    lines = [text.strip(), '']
    for module, defined in sorted(flags.FLAGS.flags_by_module_dict().items()):
        if module.startswith(('ssd4rec_jax', 'experiments', '__main__')) or module == sys.argv[0]:
            lines += [f'{flag.name}: {flag.help} (default: {flag.value})' for flag in defined]
    return '\n'.join(f'  --{line}' if ': ' in line and k > 1 else line for k, line in enumerate(lines))


def _module_name() -> str:
    spec = sys.modules['__main__'].__spec__
    return spec.name if spec else sys.argv[0]
