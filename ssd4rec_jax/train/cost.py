"""What an epoch costs, said before it is paid, and which setting would make it cheaper."""
from typing import Any

import numpy as np

from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.examples import ExampleIndex, train_histories
from ssd4rec_jax.train.objective import one_pass_obstacle

# The history length for which data.max_history is suggested, and how many times less work makes a setting worth a word.
SHORTER_HISTORY, WORTH_SAYING = 256, 2.0
# Steps of a session after which their speed foretells an epoch's time, and the shortest epoch for which it is said.
FIRST_STEPS, LONG_EPOCH = 5, 30


def cost_note(examples: ExampleIndex, dataset: SequenceDataset, model: Any, max_history: int) -> str:
    """One line: the tokens that an epoch reads and, where there is one, the setting that makes them much fewer."""
    lengths = examples.lengths
    tokens = int(lengths.sum())
    note = f'cost: an epoch reads {tokens:,} tokens'
    if examples.every_prefix:
        return note
    cheaper = []
    if one_pass_obstacle(model, examples.cut, max_history) is None:
        cheaper.append(('train.objective=one_pass', int(train_histories(dataset).lengths.sum())))
    cheaper.append((f'data.max_history={SHORTER_HISTORY}', int(np.minimum(lengths, SHORTER_HISTORY).sum())))
    for setting, fewer in cheaper:
        if tokens >= WORTH_SAYING * fewer:
            return f'{note}; --set={setting} would read {fewer:,}, {tokens / fewer:,.0f} times less'
    return note


def time_note(seconds: float, steps: int, num_steps: int) -> str:
    """How long an epoch of num_steps steps takes at the speed of the first ones, which took `seconds` for `steps`."""
    epoch = seconds / steps * num_steps
    words = f'{epoch:.0f} s' if epoch < 120 else f'{epoch / 60:.0f} min' if epoch < 7200 else f'{epoch / 3600:.1f} h'
    return f'at the speed of the first {steps} steps an epoch of {num_steps:,} takes {words} on this machine'
