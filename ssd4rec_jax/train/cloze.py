"""Which items a step of the cloze objective hides, to be predicted from the rest of their history.

Sun et al., "BERT4Rec" (CIKM 2019), section 3.6: each item of a history is hidden with some probability, and in a share
of the histories the last item alone, as in ranking. Here the last item is hidden in the others too, so that every
history trains what a ranking asks; the paper and RecBole hide it there as often as any other.
"""
import jax

from ssd4rec_jax.model.draws import Draws
from ssd4rec_jax.model.layout import Layout, of_history


def hidden_items(layout: Layout, draws: Draws, mask_ratio: float, last_alone: float) -> jax.Array:
    """bool [rows, tokens], which items are hidden; none in padding.

    mask_ratio: the probability of each item but the last, in a history of which not the last alone is hidden.
    last_alone: the probability that a history is one of which the last alone is hidden.
    """
    alone = of_history(draws.at(layout.starts).below(last_alone, 'last alone'), layout.slot)
    last = (layout.segment_ids > 0) & (layout.remaining == 0)
    return last | (layout.remaining > 0) & draws.below(mask_ratio, 'mask') & ~alone
