"""Training and evaluation of one configuration, in the plain form and in ours, measured in one run."""
import dataclasses
import functools
import itertools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.plain_network import PlainNetwork
from experiments.pod.memory import memory_of
from pallas_kernels.bench.clock import median_seconds
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.examples import ExampleIndex, valid_examples
from ssd4rec_jax.data.packing import EpochPlan, PackedBatch, build_step, choose_step_shape, plan_epoch
from ssd4rec_jax.data.pipeline import step_loader
from ssd4rec_jax.model.network import Network, init_network
from ssd4rec_jax.parallel.mesh import by_rows, device_mesh, token_multiple
from ssd4rec_jax.rank.ranker import Ranker
from ssd4rec_jax.train.full_softmax import softmax_loss_sum
from ssd4rec_jax.train.objective import one_pass_obstacle, training_examples
from ssd4rec_jax.train.program import TrainProgram

BATCHES = 4  # The timed steps cycle through this many batches of an epoch.


class TrainStep:
    """A compiled train step and some batches of its epoch; each call makes one step."""

    def __init__(self, network: Any, params: dict, config: RunConfig, examples: ExampleIndex):
        self.examples = examples
        self.mesh = device_mesh()
        shape = choose_step_shape(
            examples.lengths, targets_per_step=config.train.targets_per_step, tokens_per_row=config.data.tokens_per_row,
            rows=config.data.rows_per_step, row_multiple=self.mesh.size, every_prefix=examples.every_prefix,
            token_multiple=token_multiple(self.mesh),
        )
        self.plan: EpochPlan = plan_epoch(examples.lengths, shape, seed=config.train.seed, epoch=0)
        program = TrainProgram(
            config, network.num_items, self.mesh, every_prefix=examples.every_prefix, network=network
        )
        self.state = program.carried(program.init_state(jax.tree.map(np.array, params)))
        batches = [self.to_device(build_step(examples, self.plan, k)) for k in range(min(BATCHES, self.plan.num_steps))]
        self._args = np.uint32(0), np.uint32(0), *program.constants(examples.target_counts(network.num_items))
        self.compiled = program.compile(shape)
        self._batches = itertools.cycle(batches)
        self.readouts = batches[0].targets.size

    def to_device(self, batch: PackedBatch) -> PackedBatch:
        """The batch, placed on the devices."""
        return jax.device_put(batch, by_rows(self.mesh))

    def run(self, batch: PackedBatch) -> jax.Array:
        """Start one step and return its loss; the step may still be running."""
        self.state, loss = self.compiled(self.state, batch, *self._args)
        return loss

    def __call__(self) -> float:
        """Make a whole step and return its loss."""
        return float(self.run(next(self._batches)))

    def figures(self, seconds: float) -> dict:
        """The figures of a step, and of the epoch that such steps make, where a step takes this many seconds."""
        epoch = seconds * self.plan.num_steps
        memory = memory_of(self.compiled, available=0)
        return {
            'step_seconds': seconds, 'epoch_seconds': epoch,
            'targets_per_second': int(self.examples.num_targets.sum()) / epoch,
            'tokens_per_second': self.plan.num_tokens / epoch,
            'memory_bytes': memory.temporaries + memory.arguments,
            'steps': self.plan.num_steps, 'shape': dataclasses.asdict(self.plan.shape), 'fill': self.plan.fill,
        }


class Forms(NamedTuple):
    """Two networks that compute the same function, and parameters for both."""

    plain: PlainNetwork
    ours: Network
    params: dict

    @classmethod
    def of(cls, config: RunConfig, num_items: int) -> 'Forms':
        """The two forms of the configured network, over a catalogue of num_items items."""
        network, params = init_network(config.model, num_items, seed=config.train.seed)
        return cls(PlainNetwork(network), network, params)


def measure_steps(config: RunConfig, dataset: SequenceDataset, forms: Forms, repeats: int) -> dict:
    """The figures of training.

    They have the keys 'plain', 'prefix', 'one_pass' where that is exact, 'softmax' and 'waiting_share'.
    """
    prefixes = training_examples('prefix', config.model, dataset, config.data.max_history)
    steps = {
        'plain': TrainStep(forms.plain, forms.params, config, prefixes),
        'prefix': TrainStep(forms.ours, forms.params, config, prefixes),
    }
    if one_pass_obstacle(config.model, prefixes.cut, config.data.max_history) is None:
        histories = training_examples('one_pass', config.model, dataset, config.data.max_history)
        steps['one_pass'] = TrainStep(forms.ours, forms.params, config, histories)
    fastest = list(steps)[-1]
    softmax = _softmax_alone(steps[fastest].readouts, forms, config)
    seconds = median_seconds({**steps, 'softmax': softmax}, repeats)
    return {
        **{name: step.figures(seconds[name]) for name, step in steps.items()},
        'softmax': {
            'seconds': seconds['softmax'], 'share_of': fastest, 'share': seconds['softmax'] / seconds[fastest],
        },
        'waiting_share': _waiting_share(steps[fastest], repeats),
    }


def _softmax_alone(readouts: int, forms: Forms, config: RunConfig):
    """A call that computes the loss of a step and its gradients without the network."""
    table = forms.params['item_embedding']
    width = config.model.hidden_size
    rng = np.random.default_rng(0)
    readout = jnp.asarray(rng.normal(size=(readouts, width)), forms.ours.bind(forms.params).dtype)
    targets = jnp.asarray(rng.integers(1, len(table), readouts))

    def loss(readout, table):
        return softmax_loss_sum(readout, table, targets, targets > 0)

    gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))
    return lambda: jax.block_until_ready(gradients(readout, table))


def _waiting_share(step: TrainStep, repeats: int) -> float:
    """The share of its time that a real training loop, with loader and transfers, waits for the next batch."""
    waited, loss, batches = 0.0, None, iter(step_loader(step.examples, step.plan))
    count = min(step.plan.num_steps, 4 * repeats)
    step.run(step.to_device(next(batches))).block_until_ready()
    started = time.perf_counter()
    for _ in range(count - 1):
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before
        previous, loss = loss, step.run(step.to_device(batch))
        if previous is not None:
            previous.block_until_ready()  # Like the trainer, this stays one step ahead.
    jax.block_until_ready(loss)
    return waited / max(time.perf_counter() - started, 1e-9)


def measure_evaluation(
    config: RunConfig, dataset: SequenceDataset, forms: Forms, repeats: int, plain_users: int
) -> dict:
    """The users ranked per second, by our form on the whole validation split and by the plain form on some users.

    plain_users: the number of users that the plain form ranks.
    """
    whole = valid_examples(dataset, max_history=config.data.max_history)
    picked = np.linspace(0, len(whole) - 1, min(plain_users, len(whole))).astype(int)
    part = dataclasses.replace(
        whole, start=whole.start[picked], stop=whole.stop[picked], target=whole.target[picked]
    )
    examples = {'plain': part, 'ours': whole}
    networks: dict[str, Any] = {'plain': forms.plain, 'ours': forms.ours}
    rankers = {
        name: Ranker(
            network, device_mesh(), whole, targets_per_step=config.train.targets_per_step,
            tokens_per_row=config.data.tokens_per_row,
        )
        for name, network in networks.items()
    }
    seconds = median_seconds({
        name: functools.partial(ranker.ranks, forms.params, examples[name]) for name, ranker in rankers.items()
    }, repeats)
    users = {name: len(some) for name, some in examples.items()}
    return {
        name: {'users': users[name], 'seconds': seconds[name], 'users_per_second': users[name] / seconds[name]}
        for name in rankers
    }
