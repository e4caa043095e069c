"""List every setting: key, value, type, default and meaning.

    ssd4rec settings [--dataset=NAME] [--preset=NAME] [--set=KEY=VALUE] [--config=FILE.toml]

Settings are changed with --set=KEY=VALUE, or in a TOML file that --config names, in sections [model], [data], [train].
"""
import shutil
import textwrap

from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.config_flags import CONFIG_FILE, SET, overridden
from ssd4rec_jax.commands.dataset_flags import DATASET
from ssd4rec_jax.commands.preset_flag import PRESET
from ssd4rec_jax.config.run import described
from ssd4rec_jax.presets import default_config, fixed_config, preset_name
from ssd4rec_jax.show.output import write_stdout


def main() -> int:
    width = min(shutil.get_terminal_size().columns, 100)
    preset = preset_name(DATASET.value, PRESET.value)
    if preset == 'auto':
        base, about = default_config(DATASET.value), 'those that a training fits to its log are shown as published'
    else:
        base, about = fixed_config(DATASET.value, preset)
    config = overridden(base)
    changed = ' and what is set' if SET.value or CONFIG_FILE.value else ''
    head = f'The settings of --dataset={DATASET.value}{changed} ({about.removeprefix("settings: ")}).'
    lines = [textwrap.fill(head, width, break_long_words=False, break_on_hyphens=False)]
    for key, setting in described(config).items():
        default = '' if setting.value == setting.default else f', default {_shown(setting.default)}'
        lines.append(f'\n{key} = {_shown(setting.value)}  ({setting.kind.__name__}{default})')
        lines.append(textwrap.fill(
            setting.meaning, width, initial_indent='    ', subsequent_indent='    ', break_long_words=False,
            break_on_hyphens=False,
        ))
    write_stdout('\n'.join(lines) + '\n')
    return 0


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "''" if value == '' else str(value)


if __name__ == '__main__':
    run(main)
