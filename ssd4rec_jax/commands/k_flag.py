"""The flag that says how long lists of items are, for the commands that make or judge them."""
from absl import flags

from ssd4rec_jax.errors import ConfigError

K = flags.DEFINE_string(
    'k', None, 'Items of a list. recommend takes one number (10 if not given), evaluate several: 5,10,20,50 '
    '(10,20 if not given).'
)


def list_lengths(default: tuple[int, ...]) -> tuple[int, ...]:
    """The flag's numbers in ascending order, each once; ConfigError where one is no whole number from 1."""
    if K.value is None:
        return default
    texts = [text.strip() for text in K.value.split(',')]
    if not all(text.isascii() and text.isdigit() and int(text) > 0 for text in texts):
        raise ConfigError(f'--k={K.value}: write whole numbers from 1, separated by commas')
    return tuple(sorted({int(text) for text in texts}))


def list_length(default: int) -> int:
    """The flag's only number; ConfigError where there are several."""
    lengths = list_lengths((default,))
    if len(lengths) > 1:
        raise ConfigError(f'--k={K.value}: give one number, the items to recommend')
    return lengths[0]
