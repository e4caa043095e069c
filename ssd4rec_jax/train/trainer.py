"""The training loop: epochs of packed steps, an evaluation after each epoch, early stopping, exact resume."""
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ssd4rec_jax.config.plugs import features_read
from ssd4rec_jax.config.run import RunConfig, flat
from ssd4rec_jax.data.dataset import SequenceDataset, with_features
from ssd4rec_jax.data.examples import test_examples, valid_examples
from ssd4rec_jax.data.followers import count_followers, followers_of
from ssd4rec_jax.data.packing import EpochPlan, StepShape, choose_step_shape, padded_step_shape, plan_epoch
from ssd4rec_jax.data.pipeline import step_loader
from ssd4rec_jax.model.implementation import ssd_implementation
from ssd4rec_jax.parallel.mesh import device_mesh, place_rows, replicated, rows_here, token_multiple
from ssd4rec_jax.parallel.out_of_memory import (
    explain_out_of_memory,
    foretell_out_of_memory,
    foretell_temporaries,
    step_bytes,
)
from ssd4rec_jax.parallel.processes import Votes, agree, is_first
from ssd4rec_jax.rank.ranker import Ranker
from ssd4rec_jax.reporter import Reporter
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.model_folder import save_model
from ssd4rec_jax.train.accounts import StepAccounts
from ssd4rec_jax.train.cost import cost_note
from ssd4rec_jax.train.early_stopping import STOPPING_METRIC
from ssd4rec_jax.train.fitted_followers import fitted_weight
from ssd4rec_jax.train.objective import history_limit, loss_note, objective_note, training_examples
from ssd4rec_jax.train.program import TrainProgram
from ssd4rec_jax.train.result import make_result
from ssd4rec_jax.train.session import TrainSession
from ssd4rec_jax.train.state import TrainState
from ssd4rec_jax.train.warm_start import WarmStart, examples_of


class Trainer:
    """One run on prepared data, kept in a run folder, on all devices of all processes.

    Every process of a run makes a Trainer and calls `run`; only the first process writes metrics and result.
    model_shards: the number of devices that share the item table. devices: the devices to run on; None means all.
    stop_requested: called after each step, and after the validation that follows the last one of an epoch; once it
      returns True on any process, the run saves a checkpoint and `run` returns None.
    on_saved: called once, on the first process, when the first checkpoint of this config is whole: from then on the run
      is a run of this config.

    histories: whether the model that a finished run leaves keeps what each user did.
    warm: what a new run begins with and whose histories it reads; None draws parameters and reads all.

    program, session, state: the train step, the record of the run and its arrays, once `open` has been called.
    """

    def __init__(
        self, config: RunConfig, dataset: SequenceDataset, folder: RunFolder, *, model_shards: int = 1,
        devices: Sequence[jax.Device] | None = None, reporter: Reporter | None = None,
        stop_requested: Callable[[], bool] = lambda: False, on_saved: Callable[[], None] | None = None,
        histories: bool = True, warm: WarmStart | None = None,
    ):
        self.config, self.folder = config, folder
        self.dataset = with_features(dataset, features_read(config.model))
        self.model_shards, self.devices = model_shards, devices
        self.reporter = reporter or Reporter()
        self.stop_requested, self.on_saved = stop_requested, on_saved
        self.histories, self.warm = histories, warm
        self.program: TrainProgram
        self.session: TrainSession
        self.state: TrainState
        self._is_open = False

    def open(self) -> 'Trainer':
        """Prepare the run and return self.

        This compares the settings of all processes, restores the newest checkpoint or draws a new state, and reports
        what will run.
        """
        config, dataset, note = self.config, self.dataset, self.reporter.note
        mesh = device_mesh(self.devices, self.model_shards)
        agree({'the data (fingerprint)': dataset.fingerprint, '--model_shards': self.model_shards, **flat(config)})
        limited_by, max_history = history_limit(config.model, config.data.max_history)
        every = training_examples(
            config.train.objective, config.model, dataset, max_history,
            hidden=config.data.mask_ratio * (1 - config.train.last_alone),
        )
        self.examples = examples_of(every, self.warm.users, dataset) if self.warm else every
        note(objective_note(config.train.objective, config.model, self.examples, max_history))
        note(loss_note(config.train, dataset.num_items))
        if dataset.gaps:
            note(dataset.gaps.note)
        note(cost_note(self.examples, dataset, config.model, max_history))
        if self.examples.cut:
            note(
                f'{limited_by}={max_history} shortens {self.examples.cut:,} of '
                f'{len(self.examples):,} training histories'
            )
        self.program = TrainProgram(
            config, dataset.num_items, mesh, every_prefix=self.examples.every_prefix,
            steps_per_epoch=self._steps_per_epoch(mesh) if config.train.schedule_spans_epochs else 0,
        )
        like = self.program.like
        foretell_out_of_memory('the train step', (like, like.params), mesh)  # The state and the gradients.
        self.session = TrainSession(self.folder, self.program, dataset.fingerprint, self.reporter, self.on_saved)
        self.state = self.session.restore(
            lambda: self._choose_shape(mesh, every.lengths), self.warm.params if self.warm else None
        )
        shape = self.session.progress.shape
        self.implementation = ssd_implementation(config.model, shape.rows // mesh.size, shape.tokens)
        if self.implementation:
            note(f'SSD scans run as {self.implementation}')
        self._constants = self.program.constants(self.examples.target_counts(dataset.num_items))
        self._compiled: jax.stages.Compiled | None = None
        self._plan_told = False
        self._votes = Votes(mesh)
        self._held_out = {
            'valid': valid_examples(dataset, max_history=max_history),
            'test': test_examples(dataset, max_history=max_history),
        }
        self._followers = followers_of(config.model, dataset)
        self._ranker = Ranker(
            self.program.network, mesh, self._held_out['test'], targets_per_step=config.train.targets_per_step,
            tokens_per_row=config.data.tokens_per_row, followers=self._followers, reporter=self.reporter,
        )
        self._is_open = True
        return self

    def run(self) -> dict | None:
        """Train to the end and return the content of result.json; None where stop_requested ended the run early."""
        if not self._is_open:
            self.open()
        try:
            with explain_out_of_memory('the train step'):
                while not self._finished():
                    plan = self._plan()
                    if not self._steps(plan):
                        return None
                    self._evaluate_epoch(plan)
                    # The step that ends an epoch has not asked; a run that is at its end needs no more than its ranks.
                    if not self._finished() and self._votes.ask(self.stop_requested(), False)[0]:
                        self._save_and_wait()
                        return None
            return self._finish()
        finally:
            self.session.close()

    def _steps_per_epoch(self, mesh: Mesh) -> int:
        """The steps of the first epoch on this mesh."""
        lengths = self.examples.lengths
        return plan_epoch(lengths, self._choose_shape(mesh, lengths), seed=self.config.train.seed, epoch=0).num_steps

    def _choose_shape(self, mesh: Mesh, lengths: np.ndarray) -> StepShape:
        data = self.config.data
        if data.packing == 'padded':
            return padded_step_shape(
                lengths, targets_per_step=self.config.train.targets_per_step, row_multiple=mesh.size,
                every_prefix=self.examples.every_prefix, token_multiple=token_multiple(mesh),
            )
        return choose_step_shape(
            lengths, targets_per_step=self.config.train.targets_per_step,
            tokens_per_row=data.tokens_per_row, rows=data.rows_per_step, row_multiple=mesh.size,
            every_prefix=self.examples.every_prefix, token_multiple=token_multiple(mesh),
        )

    def _finished(self) -> bool:
        progress, train = self.session.progress, self.config.train
        return progress.epoch >= train.max_epochs or progress.stopping.should_stop(train.patience)

    def _plan(self) -> EpochPlan:
        """The plan of the current epoch; the first call of a session reports its shape."""
        progress = self.session.progress
        plan = plan_epoch(self.examples.lengths, progress.shape, seed=self.config.train.seed, epoch=progress.epoch)
        if not self._plan_told:
            targets, shape = plan.per_step(self.examples.num_targets), progress.shape
            self.reporter.note(
                f'an epoch: {targets.sum():,} targets in {plan.num_steps:,} steps of {shape.rows} x {shape.tokens:,} '
                f'tokens, {targets.mean():,.0f} targets a step ({targets.min():,} to {targets.max():,}), '
                f'packing fill {plan.fill:.1%}'
            )
            self._plan_told = True
        return plan

    def _steps(self, plan: EpochPlan) -> bool:
        """Run the remaining steps of the epoch; False where the run is asked to stop.

        Nothing goes to the devices for a step that is not there before it begins: seed and epoch are put there once an
        epoch, and the batch of a step while the one before it is under way. The loss of a step is read while the next
        step runs.
        """
        session, mesh, rows = self.session, self.program.mesh, plan.shape.rows
        done = session.progress.step_in_epoch
        train = self.config.train
        self.reporter.epoch(
            session.progress.epoch + 1, done, plan.num_steps, train.max_epochs,
            train.patience - session.progress.stopping.worse,
        )
        if done == 0:
            self.state = self.state._replace(**jax.device_put(
                {'epoch_loss': jnp.float32(0), 'epoch_targets': jnp.int32(0)}, replicated(mesh)
            ))
        seed, epoch = jax.device_put(
            (np.uint32(train.seed & 0xFFFFFFFF), np.uint32(session.progress.epoch)), replicated(mesh)
        )
        account = StepAccounts(
            session, self.examples, plan, first_step=int(self.state.step) - done, reporter=self.reporter
        )
        loader = step_loader(self.examples, plan, rows=rows_here(mesh, rows), start_step=done)
        placed = (place_rows(batch, mesh, rows) for batch in loader)
        batch = next(placed)
        carried = self.program.carried(self.state)
        for number in range(done + 1, plan.num_steps + 1):
            if self._compiled is None:
                with self.reporter.compiling('the train step'):
                    self._compiled = self.program.compile(
                        plan.shape, steps=train.max_epochs * plan.num_steps if self.warm else None
                    )
                foretell_temporaries('the train step', self._compiled, mesh)
                account.restart_clock()
            carried, loss = self._compiled(carried, batch, seed, epoch, *self._constants)
            batch = next(placed, None)
            account.settle()
            account.pending = number, loss
            if number == plan.num_steps:
                break  # The run evaluates and saves after the epoch.
            stop, save = self._votes.ask(self.stop_requested(), is_first() and session.is_save_due())
            if stop or save:
                account.settle()
                self.state = self.program.state_of(carried)
                session.save(self.state)
            if stop:
                self._save_and_wait()
                return False
        account.settle()
        self.state = self.program.state_of(carried)
        return True

    def _save_and_wait(self) -> None:
        if not self.session.is_saved(self.state):
            self.session.save(self.state)
        self.session.checkpoints.wait()

    def _evaluate_epoch(self, plan: EpochPlan) -> None:
        session = self.session
        session.check_parameters(self.state)
        step, epoch = int(self.state.step), session.progress.epoch + 1
        started = time.monotonic()
        metrics = self._metrics('valid', self.state.answering)
        # Items that training has seen do not tell which epoch is best: where nothing is held out, the last one is.
        value = metrics[STOPPING_METRIC] if self.config.data.split != 'none' else float(epoch)
        stopping, improved = session.progress.stopping.update(value, epoch, step)
        record = {
            'kind': 'valid', 'step': step, 'epoch': epoch, **metrics,
            'epoch_loss': float(self.state.epoch_loss) / float(self.state.epoch_targets),
            'packing_fill': plan.fill, 'ssd_implementation': self.implementation, 'best': improved,
            'train_seconds': session.progress.seconds, 'evaluation_seconds': time.monotonic() - started,
        }
        session.log(record)
        self.reporter.evaluation(record)
        session.progress = session.progress.after_epoch(stopping, round(metrics[STOPPING_METRIC], 4))
        session.end_epoch(self.state, is_best=improved)

    def _metrics(self, split: str, params: dict) -> dict[str, float]:
        return self._ranker.metrics(params, self._held_out[split])

    def _fit_followers(self, params: dict) -> dict[str, float]:
        """Choose how much followers weigh where that is asked for; what result.json says of it."""
        model, held_out = self.config.model, self.config.data.split != 'none'
        if not (held_out and getattr(model, 'fit_followers', False)):
            return {}
        weight, self._followers, found = fitted_weight(
            self._ranker, params, self._held_out['valid'], count_followers(self.dataset), model.follower_weight
        )
        told = ', '.join(f'{value:.4f} with {tried:g}' for tried, value in found.items())
        self.reporter.note(f'followers weigh {weight:g}, by validation ({STOPPING_METRIC} {told})')
        return {'follower_weight': weight}

    def _finish(self) -> dict:
        """Rank both splits with the best checkpoint, which becomes the state, and write model and result.json."""
        session = self.session
        self._save_and_wait()
        del self.state  # There may be no memory for two states.
        self.state = session.checkpoints.restore_best(self.program.like).state
        answering = self.state.answering
        fitted = self._fit_followers(answering)
        params, stopping = self.program.network.whole(answering), session.progress.stopping
        result = make_result(
            self.program, session.progress, self.dataset, params,
            {split: self._metrics(split, answering) for split in ('valid', 'test')},
            ssd_implementation=self.implementation, checkpoint_wait_seconds=session.checkpoints.seconds_waited,
            step_bytes=step_bytes(self._compiled) if self._compiled else None,
        )
        result |= fitted
        test = {'kind': 'test', 'step': stopping.best_step, 'epoch': stopping.best_epoch, **result['test']}
        session.log(test)
        self.reporter.evaluation(test)
        if is_first():
            save_model(
                self.folder.model, self.config, self.dataset, params, step=stopping.best_step,
                best_epoch=stopping.best_epoch, histories=self.histories, followers=self._followers,
            )
            self.folder.write_result(result)
        return result
