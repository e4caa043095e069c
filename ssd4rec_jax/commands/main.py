"""The console script `ssd4rec`: one name for all commands, from any folder and from a wheel."""
import ast
import difflib
import importlib
import importlib.metadata
import importlib.util
import keyword
import sys

from ssd4rec_jax.show.output import complain, write_stdout

PROGRAM = 'ssd4rec'
COMMANDS = (
    'train', 'evaluate', 'recommend', 'prepare', 'settings', 'tune', 'study', 'report', 'export', 'import', 'serve',
    'parity',
)


def main() -> None:
    """Run the command that the first argument names, with the arguments after it, and exit with its code."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ('--help', '-help', '-h', 'help'):
        write_stdout(_overview())
        sys.exit(0 if arguments else 2)
    if arguments[0] == '--version':
        write_stdout(f'{importlib.metadata.version("ssd4rec-jax")}\n')
        sys.exit(0)
    name = arguments[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        guess = f'; did you mean {near[0]!r}?' if near else '.'
        complain(f'error: {PROGRAM} has no command {name!r}{guess} Known: {", ".join(COMMANDS)}')
        sys.exit(2)
    sys.argv = [f'{PROGRAM} {name}', *arguments[1:]]
    command = importlib.import_module(_module(name))
    importlib.import_module(f'{__package__}.cli').run(command.main)


def _overview() -> str:
    lines = [f'Usage: {PROGRAM} COMMAND [--flag=value ...]', '']
    lines += [f'  {name:10} {_first_line(name)}' for name in COMMANDS]
    return '\n'.join([*lines, '', f'{PROGRAM} COMMAND --help shows the flags of a command.', ''])


def _module(name: str) -> str:
    """The module of a command; a word of Python gets an underscore, since no module can be imported by it."""
    return f'{__package__}.{name}{"_" * keyword.iskeyword(name)}'


def _first_line(name: str) -> str:
    """The first line of a command's docstring, read without importing what the command imports."""
    spec = importlib.util.find_spec(_module(name))
    source = getattr(spec and spec.loader, 'get_source', lambda _: '')(_module(name)) or ''
    return (ast.get_docstring(ast.parse(source)) or '').partition('\n')[0]


if __name__ == '__main__':
    main()
