"""The best next items for given histories."""
import jax
import jax.numpy as jnp
import numpy as np

from ssd4rec_jax.data.examples import ExampleIndex
from ssd4rec_jax.data.packing import build_step, choose_step_shape, plan_epoch
from ssd4rec_jax.losses import map_scores
from ssd4rec_jax.model.layout import Layout
from ssd4rec_jax.network import Network

HISTORIES_PER_STEP, TOKENS_PER_ROW = 256, 8192


def recommend(
    network: Network, params: dict, histories: list[np.ndarray], *, k: int, exclude_seen: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Top k of the catalogue for each history of internal item ids (1, 2, ...), no history empty.

    Returns items int32 [histories, k] and scores float32 [histories, k], best first; k is cut to the
    catalogue's size. With exclude_seen the items of a history score -inf and come last.
    """
    lengths = np.asarray([len(h) for h in histories], np.int64)
    stop = np.cumsum(lengths)
    examples = ExampleIndex(
        items=np.concatenate(histories).astype(np.int32), start=stop - lengths, stop=stop,
        target=np.zeros(len(histories), np.int32), cut=0,
    )
    shape = choose_step_shape(lengths, targets_per_step=HISTORIES_PER_STEP, tokens_per_row=TOKENS_PER_ROW)
    plan = plan_epoch(lengths, shape, seed=0, epoch=0, shuffle=False)
    k = min(k, params['item_embedding'].shape[0] - 1)

    @jax.jit
    def top(params, batch, seen):
        model = network.bind(params)
        readout = model.readout(batch.items, Layout.of(batch))

        def top_of(s, seen):
            return jax.lax.top_k(s.at[:, 0].set(-jnp.inf).at[jnp.arange(len(s))[:, None], seen].set(-jnp.inf), k)

        return map_scores(top_of, readout.reshape(-1, readout.shape[-1]), model.item_embedding[...], seen)

    best = np.zeros((len(histories), k), np.int32)
    best_scores = np.zeros((len(histories), k), np.float32)
    for step in range(plan.num_steps):
        batch = build_step(examples, plan, step)
        ids = batch.example_ids.reshape(-1)
        # Item 0, which never ranks, fills what is left of each history's row.
        seen = np.zeros((len(ids), lengths.max() if exclude_seen else 1), np.int32)
        if exclude_seen:
            for slot in np.flatnonzero(ids >= 0):
                seen[slot, :lengths[ids[slot]]] = histories[ids[slot]]
        found, items = top(params, batch, seen)
        real = ids >= 0
        best[ids[real]], best_scores[ids[real]] = np.asarray(items)[real], np.asarray(found)[real]
    return best, best_scores
