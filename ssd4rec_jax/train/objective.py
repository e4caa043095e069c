"""What a training step minimises: a loss of each prefix by itself, of all prefixes in one pass, or of hidden items."""
from typing import Any, NamedTuple

from ssd4rec_jax.config.train import TrainConfig
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.examples import ExampleIndex, train_examples, train_histories, train_windows
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.model.network import Network
from ssd4rec_jax.train.losses import FULL_SOFTMAX, Loss


class Objective(NamedTuple):
    """What a step minimises.

    mask_ratio: the probability that an input item is masked.
    every_prefix: whether the batch has one target per token: the next item, or itself in a cloze.
    loss: the loss of the readouts, over the whole catalogue or over a sample of it.
    negatives: the number of items that a step draws uniformly for a loss that samples.
    last_alone: the share of histories of which a cloze hides the last item alone; None where there is no cloze.
    """

    network: Network
    mask_ratio: float
    every_prefix: bool = False
    loss: Loss = FULL_SOFTMAX
    negatives: int = 0
    last_alone: float | None = None


def training_examples(
    asked: str, model: Any, dataset: SequenceDataset, max_history: int, *, hidden: float = 1.0
) -> ExampleIndex:
    """The training examples in the form that train.objective asks for; the index's every_prefix says which form it is.

    'prefix': each prefix of a user's history is an example, as in the released code. 'one_pass': each user is an
    example, and all prefixes are read from a single pass. Raises ConfigError where that is not exact. The expectation
    of the loss is the same, but its gradient is noisier, because a user's prefixes share the input mask and come in the
    same step. 'auto' therefore means prefix: on Amazon Beauty one_pass ranks worse by more than seeds differ
    (docs/decisions/model-and-savings.md). 'fastest' means one_pass where that is exact, and prefix elsewhere.
    'truncated': each user's newest max_history items in one pass, as the released code of SASRec trains (Kang and
    McAuley, 2018, section III-A): what comes before them is lost. Where nothing is cut, this is one_pass.
    'cloze': each user's whole history is an example, in windows where the network reads no more of it, and its hidden
    items are the targets. hidden: the share of all but the last of a history that is hidden, in the mean.
    """
    limit = history_limit(model, max_history)[1]
    prefixes = train_examples(dataset, max_history=limit)
    if asked == 'cloze':
        if not getattr(model, 'offers_cloze', False):
            raise ConfigError(
                f'train.objective=cloze: the network {model.name} does not predict hidden items; set '
                'train.objective=prefix'
            )
        if getattr(model, 'seen_bias', False):
            raise ConfigError('train.objective=cloze knows no term for seen items: set model.seen_bias=false')
        # A ranking reads `limit` items and a mask token behind them, as far as the network has places.
        places = [n for n in (limit and limit + 1, getattr(model, 'max_length', 0)) if n]
        return train_windows(dataset, min(places, default=0), hidden=hidden)
    if asked == 'truncated':
        check_one_pass(model, 0, max_history, asked)
        return train_histories(dataset, max_history=limit)
    if asked == 'one_pass':
        check_one_pass(model, prefixes.cut, max_history)
    elif asked != 'fastest' or one_pass_obstacle(model, prefixes.cut, max_history):
        return prefixes
    return train_histories(dataset)


def objective_that_runs(asked: str, every_prefix: bool) -> str:
    """The value of train.objective with 'auto' and 'fastest' resolved. every_prefix: as training_examples says."""
    if asked in ('cloze', 'truncated'):
        return asked
    return 'one_pass' if every_prefix else 'prefix'


def objective_note(asked: str, model: Any, examples: ExampleIndex, max_history: int) -> str:
    """A sentence that says which form runs and, where train.objective is 'auto', whether the other was possible."""
    if asked == 'cloze':
        return 'objective: cloze, hidden items of whole histories, the last one always among them'
    if asked == 'truncated':
        return 'objective: truncated, all prefixes of a user\'s newest items read from one pass'
    if examples.every_prefix:
        return 'objective: one_pass, all prefixes of a user read from one pass'
    note = 'objective: prefix, every prefix of a history by itself'
    obstacle = one_pass_obstacle(model, examples.cut, max_history)
    if asked == 'fastest':
        return f'{note} (one_pass would not be exact: {obstacle})'
    if asked == 'auto' and obstacle is None:
        note += ' (train.objective=one_pass is exact here too: less work a target, more gradient noise)'
    return note


def loss_note(train: TrainConfig, num_items: int) -> str:
    """A sentence that says which loss runs."""
    name = train.loss_name(num_items)
    table = 'item table by Adam' if train.table_optimizer == 'adam' else 'item table by row-wise Adagrad'
    if name == 'full':
        return f'loss: full softmax over {num_items:,} items'
    if name in ('gbce', 'uniform'):
        return f'loss: {name} over {num_items:,} items, {train.num_negatives:,} uniform negatives; {table}'
    if name != 'sampled':
        return f'loss: {name} over {num_items:,} items'
    why = ' (train.loss=full would score them all)' if train.loss == 'auto' else ''
    return (
        f'loss: softmax sampled from {num_items:,} items{why}, {train.num_negatives:,} uniform negatives a step and '
        f'the other targets of a row, logQ-corrected; {table}'
    )


def check_one_pass(model: Any, cut: int, max_history: int, asked: str = 'one_pass') -> None:
    """Raises ConfigError, with the reason, where one pass over a history does not give the readouts of its prefixes.

    cut: the number of histories that max_history shortens for their prefixes. asked: the value of train.objective.
    """
    obstacle = one_pass_obstacle(model, cut, max_history)
    if obstacle is not None:
        raise ConfigError(f'train.objective={asked} would not be exact: {obstacle}; set train.objective=prefix')


def one_pass_obstacle(model: Any, cut: int, max_history: int) -> str | None:
    """The reason why one pass over a history does not give the readouts of its prefixes; None where it does."""
    if not getattr(model, 'prefixes_share_a_pass', False):
        if model.name != 'ssd4rec':
            return f'the network {model.name} does not read all prefixes of a history in one pass'
        return (
            f'with model.num_layers={model.num_layers} and the backward direction (model.beta={model.beta:g}) below '
            'the last layer, what this layer reads at an item depends on where the prefix ends '
            '(model.bidirectional=last would leave it out below)'
        )
    if cut:
        setting, limit = history_limit(model, max_history)
        return f'{setting}={limit} cuts {cut:,} histories, whose prefixes then begin at different items'
    return None


def history_limit(model: Any, max_history: int) -> tuple[str, int]:
    """(the setting that limits how many newest items of a history are read, that number, or 0 where all are read).

    A network may have a limit of its own, its setting max_length.
    """
    own = getattr(model, 'max_length', 0)
    if own and (not max_history or own <= max_history):
        return 'model.max_length', own
    return 'data.max_history', max_history
