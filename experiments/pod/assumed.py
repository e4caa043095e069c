"""The shape of a step on a data set of published size, worked out without the log itself."""
import dataclasses
from typing import NamedTuple

import numpy as np

from experiments.published import Published, history_lengths
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.config.train import IN_ONE_PASS
from ssd4rec_jax.data.packing import TOKEN_MULTIPLE, StepShape, choose_step_shape
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.train.objective import check_one_pass, loss_note

SAMPLE = 2_000_000  # About this many training examples represent all of them.


def example_lengths(log: Published, config: RunConfig) -> np.ndarray:
    """The history lengths of the training examples, int64 [at most about SAMPLE].

    The configured objective makes these examples from users with the lengths that history_lengths gives. Raises
    ConfigError where training would refuse that objective.
    """
    if config.train.objective in IN_ONE_PASS:
        whole, limit = history_lengths(log, log.users) - 3, config.data.max_history
        lengths = np.minimum(whole, limit) if limit else whole
        cut = 0 if config.train.objective == 'truncated' else int(np.sum(whole > lengths))
        check_one_pass(config.model, cut, limit, config.train.objective)
        return lengths
    users = min(log.users, max(100, SAMPLE * log.users // log.interactions))
    prefixes = [np.arange(1, n - 2) for n in history_lengths(log, users)]
    lengths = np.concatenate(prefixes)
    return np.minimum(lengths, config.data.max_history) if config.data.max_history else lengths


class Assumed(NamedTuple):
    """The shape of a step, the number of targets that it holds on average, and sentences that say what was assumed."""

    shape: StepShape
    targets: float
    sentences: list[str]


def assumed_step(
    log: Published, config: RunConfig, devices: int, *, tokens_per_row: int = 0, rows_per_device: int = 0,
    token_multiple: int = TOKEN_MULTIPLE,
) -> Assumed:
    """The shape that training would choose for a number of devices.

    tokens_per_row, rows_per_device: override that choice where they are not 0. token_multiple: as in choose_step_shape.
    """
    if tokens_per_row % TOKEN_MULTIPLE:
        raise ConfigError(f'--tokens_per_row={tokens_per_row} must be a multiple of {TOKEN_MULTIPLE}')
    lengths = example_lengths(log, config)
    every_prefix = config.train.objective in IN_ONE_PASS
    rows = rows_per_device * devices or config.data.rows_per_step
    counted = 'after preparation' if log.prepared else (
        'of the raw log, before the k-core leaves out rare ones: an upper bound'
    )
    sentences = [
        f'catalogue: {log.items:,} items, {counted} ({log.source})',
        f'histories: {log.users:,} users, {log.interactions / log.users:,.0f} items each on average, as unequal as '
        f'{log.lengths}\'s; training examples hold {lengths.mean():,.1f} items on average and at most {lengths.max():,}'
        + (f' (data.max_history={config.data.max_history})' if config.data.max_history else ''),
    ]
    wanted: float = config.train.targets_per_step
    limit = config.data.tokens_per_row
    if tokens_per_row:
        if lengths.max() > tokens_per_row:
            sentences.append(f'histories cut to --tokens_per_row={tokens_per_row:,}: training would not cut them')
        lengths = np.minimum(lengths, tokens_per_row)
        rows, limit = rows or devices, tokens_per_row
        # As many targets as fill the rows.
        wanted = rows * tokens_per_row / (1.0 if every_prefix else lengths.mean())
    shape = choose_step_shape(
        lengths, targets_per_step=wanted, tokens_per_row=limit, rows=rows, row_multiple=devices,
        every_prefix=every_prefix, token_multiple=token_multiple,
    )
    shape = dataclasses.replace(shape, tokens=tokens_per_row or shape.tokens)
    targets = min(shape.tokens / lengths.mean(), shape.segments) * shape.rows * (lengths.mean() if every_prefix else 1)
    sentences.append(
        f'step: {shape.rows:,} rows ({shape.rows // devices} a chip) of {shape.tokens:,} tokens with room for '
        f'{shape.segments:,} histories each, about {targets:,.0f} targets (train.targets_per_step='
        f'{config.train.targets_per_step:,})'
    )
    sentences.append(loss_note(config.train, log.items))
    return Assumed(shape, float(targets), sentences)
