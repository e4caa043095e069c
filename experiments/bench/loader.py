"""How fast one core plans and builds packed steps, compared with grain's first-fit on the same examples."""
import dataclasses

import grain

from pallas_kernels.bench.clock import median_seconds, one_core
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.examples import ExampleIndex, train_examples
from ssd4rec_jax.data.packing import EpochPlan, StepShape, choose_step_shape, plan_epoch
from ssd4rec_jax.data.pipeline import step_loader

GRAIN_EXAMPLES = 20_000


def measure_loader(config: RunConfig, dataset: SequenceDataset, repeats: int) -> dict:
    """The rates on one core, with grain's threads on the same core, for every prefix of every user."""
    examples = train_examples(dataset)
    shape = choose_step_shape(
        examples.lengths, targets_per_step=config.train.targets_per_step, tokens_per_row=config.data.tokens_per_row
    )
    plan = plan_epoch(examples.lengths, shape, seed=0, epoch=0)
    count = min(GRAIN_EXAMPLES, len(examples))
    with one_core():
        seconds = median_seconds({
            'plan': lambda: plan_epoch(examples.lengths, shape, seed=0, epoch=0),
            'loader': lambda: _load_epoch(examples, shape),
            'grain_first_fit': lambda: _grain_first_fit(examples, plan, count),
        }, repeats)
        rows = _grain_first_fit(examples, plan, count)
    tokens_of_count = int(examples.lengths[plan.order[:count]].sum())
    return {
        'plan_seconds': seconds['plan'], 'steps': plan.num_steps, 'shape': dataclasses.asdict(shape),
        'loader': _rates(len(examples), plan.num_tokens, plan.fill, seconds['loader']),
        'grain_first_fit': _rates(
            count, tokens_of_count, tokens_of_count / (len(rows) * shape.tokens), seconds['grain_first_fit']
        ),
    }


def _load_epoch(examples: ExampleIndex, shape: StepShape) -> None:
    for _ in step_loader(examples, plan_epoch(examples.lengths, shape, seed=0, epoch=0)):
        pass


def _grain_first_fit(examples: ExampleIndex, plan: EpochPlan, count: int) -> list[dict]:
    """The first `count` examples of the plan, packed into rows by grain with as many bins as a step has rows."""
    histories = [{'items': examples.items[examples.start[e]:examples.stop[e]]} for e in plan.order[:count].tolist()]
    one_by_one = grain.MapDataset.source(histories).to_iter_dataset(
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    )
    return list(grain.experimental.FirstFitPackIterDataset(
        one_by_one, length_struct={'items': plan.shape.tokens}, num_packing_bins=plan.shape.rows, shuffle_bins=False,
    ))


def _rates(examples: int, tokens: int, fill: float, seconds: float) -> dict[str, float]:
    return {
        'seconds': seconds, 'examples': examples, 'examples_per_second': examples / seconds,
        'tokens_per_second': tokens / seconds, 'fill': fill,
    }
