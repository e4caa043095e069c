"""Pack histories of any length end to end into rows of fixed length, planned for a whole epoch at once.

Next-fit over a shuffled order wastes about E[L^2] / (2 E[L]) tokens a row, under 1% where rows are long and
histories short, and the plan is a cumulative sum with one binary search a row. So any step of any epoch can be built
alone, in any order, on any process.
"""
import dataclasses
import math
from typing import NamedTuple

import numpy as np
from absl import logging

from ssd4rec_jax.data.examples import ExampleIndex
from ssd4rec_jax.errors import ConfigError


class PackedBatch(NamedTuple):
    """One step's rows, for example two histories a b c and d e in a row of six tokens:

        items        a b c d e 0      segment_ids  1 1 1 2 2 0
        starts       0 3              lengths      3 2           (0 where a slot is empty)

    items, segment_ids: int32 [rows, tokens]; segments count from 1 in each row, 0 is padding at its end.
    starts, lengths, targets, example_ids: int32 [rows, segments]; lengths and targets are 0 and
    example_ids -1 where a slot is empty.
    """

    items: np.ndarray
    segment_ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray
    example_ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class StepShape:
    """A step's fixed shape: [rows, tokens], with at most `segments` histories a row."""

    rows: int
    tokens: int
    segments: int


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """Where every example of an epoch goes.

    order: int64 [examples], example ids in packing order; row r holds order[row_starts[r]:row_starts[r + 1]].
    row_starts: int64 [num_steps * rows + 1]; the last step's rows may be empty.
    num_tokens: items in all histories together.
    """

    order: np.ndarray
    row_starts: np.ndarray
    num_tokens: int
    shape: StepShape

    @property
    def num_steps(self) -> int:
        return (len(self.row_starts) - 1) // self.shape.rows

    @property
    def fill(self) -> float:
        """Share of all token slots of the epoch that hold an item."""
        return self.num_tokens / (self.num_steps * self.shape.rows * self.shape.tokens)

    @property
    def targets_per_step(self) -> np.ndarray:
        """int64 [num_steps], targets in each step."""
        return np.diff(self.row_starts[:: self.shape.rows])


def choose_step_shape(
    lengths: np.ndarray, *, targets_per_step: int, tokens_per_row: int, rows: int = 0, row_multiple: int = 1
) -> StepShape:
    """The shape that holds targets_per_step histories a step on average, whatever the epoch's shuffle.

    lengths: int [examples]. rows: fixed number of rows, 0 takes the fewest, in multiples of row_multiple, whose
    tokens stay within tokens_per_row. Where the longest history is longer than such a row, rows grow to hold it and
    become fewer. ConfigError where `rows` is no multiple of row_multiple.
    """
    if rows % row_multiple:
        raise ConfigError(f'data.rows_per_step={rows} must be a multiple of the {row_multiple} devices')
    targets = min(targets_per_step, len(lengths))
    mean, longest = float(lengths.mean()), int(lengths.max())
    wanted = targets * mean
    # Next-fit leaves the part of the next history that did not fit: half a length-weighted mean length.
    waste = float(np.square(lengths, dtype=np.float64).mean()) / (2 * mean)
    if not rows:
        usable = max(tokens_per_row - waste, 1.0)
        rows = row_multiple * max(1, math.ceil(wanted / usable / row_multiple))
        if longest > tokens_per_row:
            rows = row_multiple * max(1, round(wanted / longest / row_multiple))
            logging.warning(
                'the longest history has %d items, more than data.tokens_per_row=%d: rows grow to hold it '
                '(%d rows a step). Nothing is cut; data.max_history would cut histories', longest, tokens_per_row, rows,
            )
    if len(lengths) <= targets_per_step and rows == 1:
        return StepShape(1, _round_up(int(lengths.sum()), 16), _round_up(len(lengths), 8))
    tokens = _round_up(max(math.ceil(wanted / rows + waste), longest), 16)
    # A row's slots cost softmax work, used or not: room for 1.5 standard deviations above the mean, since a row
    # that closes early loses few tokens.
    per_row = targets / rows * max(1.0, tokens * rows / (wanted + waste * rows))
    spread = float(lengths.std()) / mean
    segments = _round_up(math.ceil(per_row + 1.5 * spread * math.sqrt(per_row)), 8)
    return StepShape(rows, tokens, min(segments, _round_up(tokens, 8)))


def plan_epoch(
    lengths: np.ndarray, shape: StepShape, *, seed: int, epoch: int, shuffle: bool = True
) -> EpochPlan:
    """Next-fit of all histories in an order shuffled by (seed, epoch), or as they come without shuffle.

    Every example lies in exactly one row and no history is split. ConfigError where one is longer than a row.
    """
    if len(lengths) and lengths.max() > shape.tokens:
        raise ConfigError(f'a history of {lengths.max()} items does not fit rows of {shape.tokens} tokens')
    order = np.arange(len(lengths))
    if shuffle:
        np.random.default_rng([seed, epoch]).shuffle(order)
    total = np.concatenate([[0], np.cumsum(lengths[order])])
    row_starts = [0]
    while (at := row_starts[-1]) < len(order):
        fits = int(total.searchsorted(total[at] + shape.tokens, side='right')) - 1
        row_starts.append(min(fits, at + shape.segments))
    empty = -(len(row_starts) - 1) % shape.rows
    row_starts += [len(order)] * empty
    return EpochPlan(order, np.asarray(row_starts), int(total[-1]), shape)


def build_step(examples: ExampleIndex, plan: EpochPlan, step: int, rows: slice = slice(None)) -> PackedBatch:
    """The batch of one step, or of some of its rows (a process's share)."""
    shape = plan.shape
    of_step = range(step * shape.rows, (step + 1) * shape.rows)[rows]
    bounds = plan.row_starts[of_step.start:of_step.stop + 1]
    ids = plan.order[bounds[0]:bounds[-1]]
    start, length = examples.start[ids], examples.stop[ids] - examples.start[ids]
    before = np.cumsum(length) - length  # tokens of the step's earlier histories
    # One gather for the whole step: token t of the run belongs to the flat array's t + (start - before).
    shift = np.repeat((start - before).astype(np.int32), length)
    items = examples.items[shift + np.arange(len(shift), dtype=np.int32)]

    n = len(of_step)
    batch = PackedBatch(
        *(np.zeros((n, shape.tokens), np.int32) for _ in range(2)),
        *(np.zeros((n, shape.segments), np.int32) for _ in range(3)),
        np.full((n, shape.segments), -1, np.int32),
    )
    for r in range(n):
        a, b = bounds[r] - bounds[0], bounds[r + 1] - bounds[0]
        if a == b:
            continue
        first = before[a]
        used = before[b - 1] + length[b - 1] - first
        batch.items[r, :used] = items[first:first + used]
        batch.segment_ids[r, :used] = np.repeat(np.arange(1, b - a + 1, dtype=np.int32), length[a:b])
        batch.starts[r, :b - a] = before[a:b] - first
        batch.lengths[r, :b - a] = length[a:b]
        batch.targets[r, :b - a] = examples.target[ids[a:b]]
        batch.example_ids[r, :b - a] = ids[a:b]
    return batch


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
