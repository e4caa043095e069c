"""Which form of the training objective runs: every prefix by itself, or all prefixes of a user in one pass."""
from ssd4rec_jax.data.dataset import SequenceDataset
from ssd4rec_jax.data.examples import ExampleIndex, train_examples, train_histories
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.model.config import ModelConfig


def training_examples(asked: str, model: ModelConfig, dataset: SequenceDataset, max_history: int) -> ExampleIndex:
    """Training examples in the form that train.objective asks for; the index's every_prefix says which one it is.

    'prefix': each prefix of a user's history is an example, as released. 'one_pass': each user is one, and all
    prefixes are read from a single pass; the loss has the same expectation, its noise has not (a user's prefixes
    share the input mask and come in the same step). 'auto' takes one_pass wherever it is exact. ConfigError where
    one_pass is asked for and is not.
    """
    prefixes = train_examples(dataset, max_history=max_history)
    if asked == 'prefix':
        return prefixes
    obstacle = one_pass_obstacle(model, prefixes.cut, max_history)
    if obstacle is None:
        return train_histories(dataset)
    if asked == 'one_pass':
        raise ConfigError(f'train.objective=one_pass would not be exact: {obstacle}; set train.objective=prefix')
    return prefixes


def one_pass_obstacle(model: ModelConfig, cut: int, max_history: int) -> str | None:
    """Why one pass over a history does not give the readouts of its prefixes; None where it does."""
    if not model.prefixes_share_a_pass:
        return (
            f'with model.num_layers={model.num_layers} and the backward direction (model.beta={model.beta:g}), what '
            'the last layer reads at an item depends on where the prefix ends'
        )
    if cut:
        return f'data.max_history={max_history} cuts {cut:,} histories, whose prefixes then begin at different items'
    return None
