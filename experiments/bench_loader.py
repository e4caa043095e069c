"""How fast one core plans and builds packed steps, beside grain's first-fit on the same examples.

    python -m experiments.bench_loader [--users=26210] [--row_multiple=1] [--json=FILE]

Histories have the lengths of KuaiRand-Pure (generated; 26,210 users before the 5-core give about
1.05 million training examples of 47 tokens). The process keeps to one core, grain's threads
included. Each figure is the median of --repeats runs.
"""
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import grain
import numpy as np
from absl import flags

from experiments.cli import run
from ssd4rec_jax.data.config import DataConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.examples import ExampleIndex, train_examples
from ssd4rec_jax.data.packing import EpochPlan, StepShape, build_step, choose_step_shape, plan_epoch
from ssd4rec_jax.data.pipeline import step_loader
from ssd4rec_jax.train_config import TrainConfig

_USERS = flags.DEFINE_integer('users', 26_210, 'Users before the 5-core.', lower_bound=1)
_ROW_MULTIPLE = flags.DEFINE_integer(
    'row_multiple', 1, 'Devices that share the rows of a step.', lower_bound=1
)
_GRAIN_EXAMPLES = flags.DEFINE_integer(
    'grain_examples', 20_000, "Examples for grain's packer.", lower_bound=1
)
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Runs of each measurement.', lower_bound=1)
_JSON = flags.DEFINE_string('json', None, 'File to write the figures to.')

KUAIRAND_ITEMS = 7111


def kuairand_like(users: int, seed: int = 0) -> SequenceDataset:
    """Random items in histories of KuaiRand-Pure's lengths: log-normal, from 5 to 806."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(3.5, 0.83, users)), 1, 806).astype(np.int64)
    lengths = lengths[(lengths >= 5) & (rng.random(users) >= 0.07)]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return SequenceDataset(
        name='kuairand-like', offsets=offsets, fingerprint='',
        items=rng.integers(1, KUAIRAND_ITEMS + 1, offsets[-1], dtype=np.int32),
        user_ids=np.arange(len(lengths)), item_ids=np.arange(1, KUAIRAND_ITEMS + 1),
    )


def use_one_core() -> None:
    """Pin the process, and the threads it starts later, where the platform can."""
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def median_seconds(call: Callable[[], object]) -> float:
    def once() -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    return statistics.median(once() for _ in range(_REPEATS.value))


def plan_and_build(examples: ExampleIndex, shape: StepShape) -> None:
    plan = plan_epoch(examples.lengths, shape, seed=0, epoch=0)
    for step in range(plan.num_steps):
        build_step(examples, plan, step)


def plan_and_load(examples: ExampleIndex, shape: StepShape) -> None:
    for _ in step_loader(examples, plan_epoch(examples.lengths, shape, seed=0, epoch=0)):
        pass


def grain_first_fit(examples: ExampleIndex, plan: EpochPlan, count: int) -> list[dict]:
    """Rows of the plan's first `count` examples, by grain with as many bins as a step has rows."""
    histories = [
        {'items': examples.items[examples.start[e]:examples.stop[e]]}
        for e in plan.order[:count].tolist()
    ]
    one_by_one = grain.MapDataset.source(histories).to_iter_dataset(
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    )
    return list(grain.experimental.FirstFitPackIterDataset(
        one_by_one, length_struct={'items': plan.shape.tokens}, num_packing_bins=plan.shape.rows,
        shuffle_bins=False,
    ))


def measure() -> dict:
    examples = train_examples(kuairand_like(_USERS.value))
    shape = choose_step_shape(
        examples.lengths, targets_per_step=TrainConfig().targets_per_step,
        tokens_per_row=DataConfig().tokens_per_row, row_multiple=_ROW_MULTIPLE.value,
    )
    plan = plan_epoch(examples.lengths, shape, seed=0, epoch=0)
    count = min(_GRAIN_EXAMPLES.value, len(examples))
    tokens_of_count = int(examples.lengths[plan.order[:count]].sum())
    rows = grain_first_fit(examples, plan, count)

    planned = median_seconds(lambda: plan_epoch(examples.lengths, shape, seed=0, epoch=0))
    built = median_seconds(lambda: plan_and_build(examples, shape))
    loaded = median_seconds(lambda: plan_and_load(examples, shape))
    grains = median_seconds(lambda: grain_first_fit(examples, plan, count))
    targets = plan.per_step(examples.num_targets)
    return {
        'examples': len(examples), 'tokens': plan.num_tokens,
        'shape': dataclasses.asdict(shape), 'steps': plan.num_steps, 'fill': plan.fill,
        'targets_per_step': {
            'mean': float(targets.mean()), 'min': int(targets.min()), 'max': int(targets.max()),
        },
        'plan_seconds': planned,
        'plan_and_build': _rates(len(examples), plan.num_tokens, built),
        'plan_and_load': _rates(len(examples), plan.num_tokens, loaded),
        'grain_first_fit': {
            'examples': count, 'fill': tokens_of_count / (len(rows) * shape.tokens),
            **_rates(count, tokens_of_count, grains),
        },
        'ratio': len(examples) / built / (count / grains),
    }


def _rates(examples: int, tokens: int, seconds: float) -> dict[str, float]:
    return {
        'seconds': seconds, 'examples_per_second': examples / seconds,
        'tokens_per_second': tokens / seconds,
    }


def main() -> int:
    use_one_core()
    figures = measure()
    targets, grains = figures['targets_per_step'], figures['grain_first_fit']
    shape = figures['shape']
    print(f'{shape["rows"]} rows of {shape["tokens"]} tokens, {shape["segments"]} slots a row')
    print(
        f'{figures["examples"]:,} examples, {figures["tokens"]:,} tokens, '
        f'{figures["steps"]:,} steps of {targets["mean"]:.0f} targets '
        f'({targets["min"]} to {targets["max"]}); an epoch is planned in {1000 * figures["plan_seconds"]:.0f} ms'
    )
    print(f'{"":34}{"examples/s":>12}{"tokens/s":>14}{"fill":>9}')
    for name, rates, fill in (
        ('planned and built', figures['plan_and_build'], figures['fill']),
        ('planned and read from the loader', figures['plan_and_load'], figures['fill']),
        (f"grain's first-fit ({grains['examples']:,})", grains, grains['fill']),
    ):
        print(
            f'{name:34}{rates["examples_per_second"]:12,.0f}{rates["tokens_per_second"]:14,.0f}'
            f'{fill:9.2%}'
        )
    print(f'planned and built is {figures["ratio"]:.0f} times as many examples/s as first-fit')
    if _JSON.value:
        path = Path(_JSON.value)
        partial = path.with_name(f'.{path.name}.partial')
        partial.write_text(json.dumps(figures, indent=1) + '\n')
        partial.replace(path)
    return 0


if __name__ == '__main__':
    run(main)
