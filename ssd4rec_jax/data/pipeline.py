"""The epoch's plan as a random-access grain source, read ahead by threads."""
import dataclasses

import grain

from ssd4rec_jax.data.examples import ExampleIndex
from ssd4rec_jax.data.packing import EpochPlan, PackedBatch, build_step
from ssd4rec_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class PackedSteps:
    """grain's random-access protocol over an epoch: step number -> this process's rows of it."""

    examples: ExampleIndex
    plan: EpochPlan
    rows: slice

    def __len__(self) -> int:
        return self.plan.num_steps

    def __getitem__(self, step: int) -> PackedBatch:
        return build_step(self.examples, self.plan, step, self.rows)


def step_loader(
    examples: ExampleIndex, plan: EpochPlan, *, start_step: int = 0, process_index: int = 0,
    process_count: int = 1, num_threads: int = 2, prefetch: int = 4,
) -> grain.DatasetIterator[PackedBatch]:
    """Iterator over steps start_step, start_step + 1, ... of an epoch, read ahead by threads.

    get_state / set_state are exact at every step, between iterators of the same plan and
    start_step. Each process gets its own equal share of every step's rows; ConfigError where they
    cannot be shared out evenly.
    """
    if plan.shape.rows % process_count:
        raise ConfigError(
            f'{plan.shape.rows} rows a step cannot be split over {process_count} processes: set '
            f'data.rows_per_step to a multiple of {process_count}'
        )
    share = plan.shape.rows // process_count
    source = PackedSteps(examples, plan, slice(process_index * share, (process_index + 1) * share))
    # A thread beyond the buffer's length would have nothing to do; grain warns of it.
    ahead = max(prefetch, num_threads)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead)
    steps = grain.MapDataset.source(source)[start_step:]
    return iter(steps.to_iter_dataset(options))
