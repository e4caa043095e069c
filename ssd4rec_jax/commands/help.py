"""What --help shows: a command's description, and its flags by topic, at the terminal's width."""
import shutil
import sys
import textwrap
from types import ModuleType

from absl import flags

from ssd4rec_jax.config.plugs import nearest

OWN = 'ssd4rec_jax', 'experiments', 'pallas_kernels'
# The topics of modules that only define flags, in the order in which they are shown after a command's own flags.
TOPICS = {
    'workdir_flag': 'the run', 'k_flag': 'length of lists', 'config_flags': 'settings', 'dataset_flags': 'the log',
    'mesh_flags': 'devices', 'distributed': 'several processes', 'cli': 'extensions',
}
_INDENT = 6


def help_text(command: ModuleType) -> str:
    """The help of a command, whose module's docstring describes it. Nothing of other packages' flags is in it."""
    width = min(shutil.get_terminal_size().columns, 100)
    groups: dict[str, list[flags.Flag]] = {'flags': []}
    groups |= {topic: [] for topic in TOPICS.values()}
    for module, defined in _own_flags().items():
        groups[TOPICS.get(module.rpartition('.')[2], 'flags')] += defined
    lines = [_reflowed((command.__doc__ or '').strip(), width)]
    for topic, defined in groups.items():
        if defined:
            lines += ['', f'{topic.capitalize()}:', *(_flag(flag, width) for flag in defined)]
    return '\n'.join(lines)


def unknown_flag(name: str) -> str:
    """The sentence for a flag that a command does not have."""
    known = [flag.name for defined in _own_flags().values() for flag in defined]
    return f'there is no flag --{name}{nearest(name, known)}'


def _own_flags() -> dict[str, list[flags.Flag]]:
    """{module: its flags}, of this project's modules and of the one that was started."""
    found = flags.FLAGS.flags_by_module_dict()
    return {name: found[name] for name in found if name.startswith(OWN) or name in ('__main__', sys.argv[0])}


def _flag(flag: flags.Flag, width: int) -> str:
    text = str(flag.help).partition(';\n')[0]  # absl adds to those that may be repeated
    if flag.value not in (None, False, '', []):
        text += f' Default: {flag.value}.'
    body = textwrap.fill(
        text, width, initial_indent=' ' * _INDENT, subsequent_indent=' ' * _INDENT, break_long_words=False,
        break_on_hyphens=False,
    )
    return f'  {_form(flag)}\n{body}'


def _form(flag: flags.Flag) -> str:
    """How a flag is written: --[no]restart, --split=test|valid, --set=... (several times)."""
    if flag.boolean:
        return f'--[no]{flag.name}'
    values = getattr(flag.parser, 'enum_values', None)
    if values:
        return f'--{flag.name}={"|".join(values)}'
    kind = {'int': 'N', 'float': 'X'}.get(flag.flag_type(), '...')
    return f'--{flag.name}={kind}' + (' (may be repeated)' if flag.flag_type().startswith('multi') else '')


def _reflowed(text: str, width: int) -> str:
    """The paragraphs of a docstring at a width; indented lines stay as they are."""
    paragraphs = []
    for paragraph in text.split('\n\n'):
        if not paragraph.startswith(' '):
            paragraph = textwrap.fill(paragraph, width, break_long_words=False, break_on_hyphens=False)
        paragraphs.append(paragraph)
    return '\n\n'.join(paragraphs)
