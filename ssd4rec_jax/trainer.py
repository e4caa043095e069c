"""The training loop: epochs of packed steps, an evaluation after each, early stopping, exact resume."""
import dataclasses
import math
import resource
import sys
import time
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import numpy as np

from ssd4rec_jax.baselines import popularity_ranks
from ssd4rec_jax.checkpoints import Checkpoints
from ssd4rec_jax.data.config import DataConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.examples import test_examples, valid_examples
from ssd4rec_jax.data.packing import EpochPlan, StepShape, choose_step_shape, plan_epoch
from ssd4rec_jax.data.pipeline import step_loader
from ssd4rec_jax.early_stopping import EarlyStopping
from ssd4rec_jax.errors import ConfigError, TrainingError
from ssd4rec_jax.evaluate import Ranker
from ssd4rec_jax.mesh import device_mesh, place_rows, replicated, rows_here
from ssd4rec_jax.metrics_log import MetricsLog
from ssd4rec_jax.model.config import ModelConfig
from ssd4rec_jax.model.implementation import ssd_implementation
from ssd4rec_jax.model.ssd4rec import compute_dtype
from ssd4rec_jax.objective import loss_note, objective_note, training_examples
from ssd4rec_jax.optimizer import learning_rate_schedule, make_optimizer
from ssd4rec_jax.out_of_memory import explain_out_of_memory
from ssd4rec_jax.processes import Votes, agree, is_first
from ssd4rec_jax.ranking import ranking_metrics
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.train_config import TrainConfig
from ssd4rec_jax.gradients import Objective
from ssd4rec_jax.network import parameters_sha256
from ssd4rec_jax.train_state import TrainState, abstract_state, create_state, make_train_step, place_probability
from ssd4rec_jax.workdir import Workdir, write_json

STOPPING_METRIC = 'NDCG@10'


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands: what a checkpoint holds beside the arrays.

    epoch counts from 0; step_in_epoch steps of it are done. seconds, targets, tokens and slots (of tokens, filled or
    not) are totals over all sessions of the run, compilation and evaluation not counted. every_prefix: the form of
    the objective that the steps of this epoch had.
    """

    shape: StepShape
    fingerprint: str
    every_prefix: bool
    epoch: int = 0
    step_in_epoch: int = 0
    seconds: float = 0.0
    targets: int = 0
    tokens: int = 0
    slots: int = 0
    stopping: EarlyStopping = EarlyStopping()

    def to_meta(self) -> dict:
        return {**dataclasses.asdict(self), 'best_step': self.stopping.best_step}

    @classmethod
    def from_meta(cls, meta: dict) -> 'Progress':
        meta = {'every_prefix': False, **meta}  # what runs were before there was a choice
        fields = {f.name: meta[f.name] for f in dataclasses.fields(cls)}
        fields.update(shape=StepShape(**meta['shape']), stopping=EarlyStopping(**meta['stopping']))
        return cls(**fields)


class Trainer:
    """One run of SSD4Rec on a prepared dataset in a workdir, on all devices of all processes.

    Every process of a run makes a Trainer and calls `run`; the first one alone writes metrics and result.
    model_shards: devices that share the item table. stop_requested is asked after each step; once it is true on any
    process the run saves a checkpoint and `run` returns None.
    """

    def __init__(
        self, model: ModelConfig, data: DataConfig, train: TrainConfig, dataset: SequenceDataset, workdir: Workdir, *,
        model_shards: int = 1, reporter: Reporter = Reporter(), stop_requested: Callable[[], bool] = lambda: False,
    ):
        self.config = train
        self.data_config = data
        self.model_config = model
        self.dataset = dataset
        self.workdir = workdir
        self.reporter = reporter
        self.stop_requested = stop_requested
        self.mesh = device_mesh(model_shards=model_shards)
        agree({
            'the data (fingerprint)': dataset.fingerprint, '--model_shards': model_shards,
            **{f'{section}.{name}': v for section, config in self._configs().items() for name, v in config.items()},
        })
        self.examples = training_examples(train.objective, model, dataset, data.max_history)
        reporter.note(objective_note(train.objective, model, self.examples, data.max_history))
        reporter.note(loss_note(train, dataset.num_items))
        if self.examples.cut:
            reporter.note(
                f'data.max_history={data.max_history} shortens {self.examples.cut:,} of '
                f'{len(self.examples):,} training histories'
            )
        self._negatives = train.negatives(dataset.num_items)
        self.optimizer = make_optimizer(train, dataset.num_items)
        self.schedule = learning_rate_schedule(train)
        self.network, self._like = abstract_state(model, dataset.num_items, self.optimizer, self.mesh)
        self.state: TrainState
        self.checkpoints = Checkpoints(workdir.checkpoints, rows=dataset.num_items + 1)
        self.metrics_log = MetricsLog(workdir.metrics)
        self.progress = self._restore()
        shape = self.progress.shape
        self.implementation = ssd_implementation(
            model, compute_dtype(model.dtype), shape.rows // self.mesh.size, shape.tokens
        )
        reporter.note(f'SSD scans run as {self.implementation}')
        self._step_fn = None
        self._constants = self._step_constants()
        self._plan_told = False
        self._saved_at = time.monotonic()
        self._votes = Votes(self.mesh)
        self._held_out = {
            'valid': valid_examples(dataset, max_history=data.max_history),
            'test': test_examples(dataset, max_history=data.max_history),
        }
        self._ranker = Ranker(
            self.network, self.mesh, self._held_out['test'], targets_per_step=train.targets_per_step,
            tokens_per_row=data.tokens_per_row, reporter=reporter,
        )

    # ---- where the run stands

    def _restore(self) -> Progress:
        restored = self.checkpoints.restore_latest(self._like)
        if restored is None:
            _, self.state = create_state(
                self.model_config, self.dataset.num_items, self.config.seed, self.optimizer, self.mesh
            )
            self._keep_records(lambda record: False)
            progress = Progress(
                shape=self._choose_shape(), fingerprint=self.dataset.fingerprint, every_prefix=self.examples.every_prefix
            )
        else:
            progress = Progress.from_meta(restored.meta)
            if progress.fingerprint != self.dataset.fingerprint:
                raise ConfigError(
                    f'{self.workdir.path} was trained on another log or other data settings (fingerprint '
                    f'{progress.fingerprint[:12]} there, {self.dataset.fingerprint[:12]} here): name another --workdir'
                )
            self.state = restored.state
            # What a killed session logged after this checkpoint is computed, and logged, again.
            self._keep_records(lambda r: r['step'] <= restored.step and r['kind'] != 'test')
            self.reporter.note(
                f'going on from step {restored.step} (epoch {progress.epoch + 1}, '
                f'{progress.step_in_epoch} steps of it done)'
            )
            if (
                _plan_settings(restored.meta['config']) != _plan_settings(self._configs())
                or progress.every_prefix != self.examples.every_prefix
            ):
                progress = dataclasses.replace(
                    progress, shape=self._choose_shape(), step_in_epoch=0, every_prefix=self.examples.every_prefix
                )
                self.reporter.note(f'the config packs epochs in another way: epoch {progress.epoch + 1} starts anew')
        devices = self.mesh.size
        if progress.shape.rows % devices:
            raise ConfigError(
                f'a step has {progress.shape.rows} rows, which {devices} devices cannot share evenly: set '
                f'data.rows_per_step to a multiple of {devices}, or resume on a device count that divides it'
            )
        return progress

    def _keep_records(self, wanted: Callable[[dict], bool]) -> None:
        if is_first():
            self.metrics_log.keep(wanted)

    def _log(self, record: dict) -> None:
        if is_first():
            self.metrics_log.write(record)

    def _choose_shape(self) -> StepShape:
        return choose_step_shape(
            self.examples.lengths, targets_per_step=self.config.targets_per_step,
            tokens_per_row=self.data_config.tokens_per_row, rows=self.data_config.rows_per_step,
            row_multiple=self.mesh.size, every_prefix=self.examples.every_prefix,
        )

    def _configs(self) -> dict:
        configs = {'model': self.model_config, 'data': self.data_config, 'train': self.config}
        return {name: dataclasses.asdict(config) for name, config in configs.items()}

    def _save(self) -> None:
        self._check_parameters()
        meta = {**self.progress.to_meta(), 'config': self._configs()}
        self.checkpoints.save(int(self.state.step), self.state, meta)
        self._saved_at = time.monotonic()

    def _check_parameters(self) -> None:
        if not _all_finite(self.state.params):
            raise self._not_finite('a parameter', int(self.state.step))

    def _not_finite(self, what: str, step: int) -> TrainingError:
        good = self.checkpoints.steps()
        last = f'the last good checkpoint is {self.workdir.checkpoints / str(good[-1])}' if good else 'no checkpoint yet'
        return TrainingError(
            f'{what} is not finite at step {step} (epoch {self.progress.epoch + 1}, learning rate '
            f'{float(self.schedule(step - 1)):g}); {last}. Lower train.learning_rate or set train.clip_norm'
        )

    # ---- running

    def run(self) -> dict | None:
        """Train to the end and return result.json's content; None if stop_requested ended it early."""
        with explain_out_of_memory('the train step'):
            while not self._finished():
                plan = self._plan()
                if not self._steps(plan):
                    return None
                self._evaluate_epoch(plan)
        return self._finish()

    def _finished(self) -> bool:
        stopping = self.progress.stopping
        return self.progress.epoch >= self.config.max_epochs or stopping.should_stop(self.config.patience)

    def _plan(self) -> EpochPlan:
        """The current epoch's plan, its shape told once a session."""
        shape = self.progress.shape
        plan = plan_epoch(self.examples.lengths, shape, seed=self.config.seed, epoch=self.progress.epoch)
        if not self._plan_told:
            targets = plan.per_step(self.examples.num_targets)
            self.reporter.note(
                f'an epoch: {targets.sum():,} targets in {plan.num_steps:,} steps of {shape.rows} x {shape.tokens:,} '
                f'tokens, {targets.mean():,.0f} targets a step ({targets.min():,} to {targets.max():,}), '
                f'packing fill {plan.fill:.1%}'
            )
            self._plan_told = True
        return plan

    def _steps(self, plan: EpochPlan) -> bool:
        """What is left of the epoch's steps, each one's loss read while the next runs; False if asked to stop."""
        done = self.progress.step_in_epoch
        self.reporter.epoch(self.progress.epoch + 1, done, plan.num_steps)
        if done == 0:
            self.state = self.state._replace(**jax.device_put(
                {'epoch_loss': jnp.float32(0), 'epoch_targets': jnp.int32(0)}, replicated(self.mesh)
            ))
        seed, epoch = np.uint32(self.config.seed & 0xFFFFFFFF), np.uint32(self.progress.epoch)
        first_step = int(self.state.step) - done
        window = _Window()
        pending = None
        targets, tokens = plan.per_step(self.examples.num_targets), plan.per_step(self.examples.lengths)
        rows = plan.shape.rows
        loader = step_loader(self.examples, plan, rows=rows_here(self.mesh, rows), start_step=done)
        for number, batch in enumerate(loader, start=done + 1):
            args = (place_rows(batch, self.mesh, rows), seed, epoch, *self._constants)
            if self._step_fn is None:
                self._step_fn = self._compile(*args)
                window = _Window()
            self.state, loss = self._step_fn(self.state, *args)
            if pending is not None:
                self._account(plan, first_step, window, *pending)
            pending = loss, int(targets[number - 1]), int(tokens[number - 1])
            if number == plan.num_steps:
                break  # the epoch's end evaluates and saves
            due = is_first() and time.monotonic() - self._saved_at >= self.config.checkpoint_seconds
            stop, save = self._votes.ask(self.stop_requested(), due)
            if stop or save:
                self._account(plan, first_step, window, *pending)
                pending = None
                self._save()
            if stop:
                self.checkpoints.wait()
                return False
        if pending is not None:
            self._account(plan, first_step, window, *pending)
        return True

    def _compile(self, *args):
        with self.reporter.compiling('the train step'):
            objective = Objective(
                self.network, self.data_config.mask_ratio, self.examples.every_prefix, self._negatives
            )
            step = make_train_step(objective, self.optimizer, self.mesh)
            return step.lower(self.state, *args).compile()

    def _step_constants(self) -> list[jax.Array]:
        """What a step takes beside state, batch, seed and epoch."""
        if not self._negatives:
            return []
        counts = self.examples.target_counts(self.dataset.num_items)
        return [place_probability(counts, self.network, self.mesh)]

    def _account(self, plan: EpochPlan, first_step: int, window: '_Window', loss, targets: int, tokens: int) -> None:
        """Wait for a step, check its loss, move the progress on and log it where a line is due."""
        loss = float(loss)
        p = self.progress
        step = first_step + p.step_in_epoch + 1
        if not math.isfinite(loss):
            raise self._not_finite(f'the loss ({loss})', step)
        seconds = window.add(targets, tokens)
        self.progress = dataclasses.replace(
            p, step_in_epoch=p.step_in_epoch + 1, seconds=p.seconds + seconds, targets=p.targets + targets,
            tokens=p.tokens + tokens, slots=p.slots + p.shape.rows * p.shape.tokens,
        )
        self.reporter.step(loss, window.targets / window.seconds)
        if step % self.config.log_every == 0 or p.step_in_epoch + 1 == plan.num_steps:
            self._log({
                'kind': 'train', 'step': step, 'epoch': p.epoch + 1, 'loss': loss,
                'learning_rate': float(self.schedule(step - 1)),
                'targets/s': window.targets / window.seconds, 'tokens/s': window.tokens / window.seconds,
                'packing_fill': tokens / (p.shape.rows * p.shape.tokens),
            })
            window.reset()

    def _evaluate_epoch(self, plan: EpochPlan) -> None:
        self._check_parameters()
        step, epoch = int(self.state.step), self.progress.epoch + 1
        started = time.monotonic()
        metrics = self._metrics('valid', self.state.params)
        stopping, improved = self.progress.stopping.update(metrics[STOPPING_METRIC], epoch, step)
        record = {
            'kind': 'valid', 'step': step, 'epoch': epoch, **metrics,
            'epoch_loss': float(self.state.epoch_loss) / float(self.state.epoch_targets),
            'packing_fill': plan.fill, 'ssd_implementation': self.implementation, 'best': improved, 'evaluation_seconds': time.monotonic() - started,
        }
        self._log(record)
        self.reporter.evaluation(record)
        self.progress = dataclasses.replace(self.progress, epoch=epoch, step_in_epoch=0, stopping=stopping)
        self._save()

    def _metrics(self, split: str, params: dict) -> dict[str, float]:
        return self._ranker.metrics(params, self._held_out[split])

    def _finish(self) -> dict:
        """Rank both splits with the best checkpoint, which becomes the state, and write result.json."""
        del self.state  # there may be no room for two
        self.state = self.checkpoints.restore_best(self._like).state
        params = self.state.params
        whole = self.network.whole(params)
        p = self.progress
        seconds = max(p.seconds, 1e-9)
        result = {
            'dataset': self.dataset.name,
            'objective': 'one_pass' if self.examples.every_prefix else 'prefix',
            'loss': 'sampled' if self._negatives else 'full',
            'ssd_implementation': self.implementation,
            **{split: self._metrics(split, params) for split in ('valid', 'test')},
            'popularity': {
                split: ranking_metrics(popularity_ranks(self.dataset, split)) for split in ('valid', 'test')
            },
            'parameters_sha256': parameters_sha256(whole),
            'best_epoch': p.stopping.best_epoch,
            'epochs': p.epoch,
            'train_seconds': p.seconds,
            'targets/s': p.targets / seconds,
            'tokens/s': p.tokens / seconds,
            'packing_fill': p.tokens / p.slots,
            'parameters': int(sum(leaf.size for leaf in jax.tree.leaves(whole))),
            'peak_memory_bytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            'backend': jax.default_backend(),
            'devices': self.mesh.size,
            'processes': jax.process_count(),
            'checkpoint_wait_seconds': self.checkpoints.seconds_waited,
            'versions': {
                'python': sys.version.split()[0], 'jax': jax.__version__, 'flax': flax.__version__,
                'numpy': np.__version__,
            },
            'seed': self.config.seed,
        }
        test = {'kind': 'test', 'step': p.stopping.best_step, 'epoch': p.stopping.best_epoch, **result['test']}
        self._log(test)
        self.reporter.evaluation(test)
        if is_first():
            write_json(self.workdir.result, result)
        return result


def _plan_settings(configs: dict) -> list:
    """The settings that decide an epoch's plan, in which a checkpoint of mid-epoch counts its steps."""
    data, train = configs['data'], configs['train']
    return [
        *(data[key] for key in ('max_history', 'tokens_per_row', 'rows_per_step')),
        *(train[key] for key in ('targets_per_step', 'seed')),
    ]


@jax.jit
def _all_finite(params: dict) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))


class _Window:
    """Speed since the last line of the log."""

    def __init__(self):
        self.last = time.monotonic()
        self.reset()

    def reset(self) -> None:
        self.targets, self.tokens, self.seconds = 0, 0, 1e-9

    def add(self, targets: int, tokens: int) -> float:
        """Count a finished step; seconds since the step before it."""
        now = time.monotonic()
        elapsed, self.last = now - self.last, now
        self.targets, self.tokens = self.targets + targets, self.tokens + tokens
        self.seconds += elapsed
        return elapsed
