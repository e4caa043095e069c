"""RecBole's rule for when to stop training, applied to the validation metric."""
import dataclasses

STOPPING_METRIC = 'NDCG@10'  # over all items, of the validation targets


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """The best evaluation so far (None before the first) and the number of worse ones in a row since then.

    As in RecBole, values are rounded to 4 decimals before they are compared, and an equal value counts as better.
    """

    best: float | None = None
    best_epoch: int = 0
    best_step: int = 0
    worse: int = 0

    def update(self, value: float, epoch: int, step: int) -> tuple['EarlyStopping', bool]:
        """Returns (the state after one more evaluation, whether this evaluation is the best so far)."""
        value = round(value, 4)
        if self.best is None or value >= self.best:
            return EarlyStopping(value, epoch, step, 0), True
        return dataclasses.replace(self, worse=self.worse + 1), False

    def forget(self) -> 'EarlyStopping':
        """The state in which the next evaluation counts as the best; until then best_epoch and best_step are kept."""
        return dataclasses.replace(self, best=None, worse=0)

    def should_stop(self, patience: int) -> bool:
        """Whether more than `patience` evaluations in a row were worse than the best."""
        return self.worse > patience
