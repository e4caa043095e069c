"""How far a run has come."""
import dataclasses

from ssd4rec_jax.data.packing import StepShape
from ssd4rec_jax.train.early_stopping import EarlyStopping


@dataclasses.dataclass(frozen=True)
class TrainProgress:
    """What a checkpoint holds in addition to the arrays.

    shape: the shape of the packed steps. fingerprint: of the prepared data.
    every_prefix: whether the steps of this epoch read every prefix of a history in one pass.
    epoch, step_in_epoch: the current epoch, counted from 0, and the number of its steps that are done.
    seconds, targets, tokens, slots: totals over all sessions of the run, without compilation and evaluation; slots are
      places for tokens in packed rows, filled or not.
    score: the score of the evaluation, where an epoch has just ended.
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
    score: float | None = None

    def after_step(self, seconds: float, targets: int, tokens: int) -> 'TrainProgress':
        """The progress after one more step."""
        return dataclasses.replace(
            self, step_in_epoch=self.step_in_epoch + 1, seconds=self.seconds + seconds, targets=self.targets + targets,
            tokens=self.tokens + tokens, slots=self.slots + self.shape.rows * self.shape.tokens, score=None,
        )

    def after_epoch(self, stopping: EarlyStopping, score: float) -> 'TrainProgress':
        """The progress after the evaluation that ends an epoch."""
        return dataclasses.replace(self, epoch=self.epoch + 1, step_in_epoch=0, stopping=stopping, score=score)

    def to_meta(self) -> dict:
        """The progress as a dict for JSON; its best_step tells Checkpoints which checkpoint to keep."""
        return {**dataclasses.asdict(self), 'best_step': self.stopping.best_step}

    @classmethod
    def from_meta(cls, meta: dict) -> 'TrainProgress':
        """The inverse of to_meta."""
        meta = {'every_prefix': False, 'score': None, **meta}  # Older runs did not store these.
        fields = {f.name: meta[f.name] for f in dataclasses.fields(cls)}
        fields.update(shape=StepShape(**meta['shape']), stopping=EarlyStopping(**meta['stopping']))
        return cls(**fields)
