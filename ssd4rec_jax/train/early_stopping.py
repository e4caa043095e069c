"""When to stop: RecBole's rule on the validation metric."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Best evaluation so far and how many in a row were worse since.

    Values are compared after rounding to 4 decimals and an equal one counts as better, as in RecBole.
    """

    best: float | None = None
    best_epoch: int = 0
    best_step: int = 0
    worse: int = 0

    def update(self, value: float, epoch: int, step: int) -> tuple['EarlyStopping', bool]:
        """(state after one more evaluation, whether it is the best so far)."""
        value = round(value, 4)
        if self.best is None or value >= self.best:
            return EarlyStopping(value, epoch, step, 0), True
        return dataclasses.replace(self, worse=self.worse + 1), False

    def forget(self) -> 'EarlyStopping':
        """The state where the next evaluation is the best, whatever it gives; until then the best epoch stays named."""
        return dataclasses.replace(self, best=None, worse=0)

    def should_stop(self, patience: int) -> bool:
        """True from evaluation number patience + 1 in a row that is worse than the best."""
        return self.worse > patience
