"""Recommend next items with a run's best checkpoint.

    python -m experiments.recommend --workdir=RUN --users=ID,ID --k=10 [--exclude_seen]
    python -m experiments.recommend --workdir=RUN --history=ITEM,ITEM,ITEM

Users are read with their whole history. Prints tab-separated lines: user (or 'history'), rank, item, score. In ids a
backslash is doubled, control characters are written as in '\\n', and a first '=', '+', '-' or '@' that begins no number as
in '\\x3d', so that no id can forge a line or be taken for a formula.
"""
import numpy as np
from absl import flags

from ssd4rec_jax.commands.cli import run
from ssd4rec_jax.commands.mesh_flags import MODEL_SHARDS
from ssd4rec_jax.commands.output import shown_id, write_stdout
from ssd4rec_jax.commands.workdir_flag import required_workdir
from ssd4rec_jax.data import ids
from ssd4rec_jax.data.vocabulary import TextIds
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.parallel.compilation_cache import enable_compilation_cache
from ssd4rec_jax.rank.recommend import TopItems
from ssd4rec_jax.run.saved_run import load_run

_USERS = flags.DEFINE_list('users', None, 'Original user ids, separated by commas.')
_HISTORY = flags.DEFINE_list('history', None, 'Original item ids in time order, separated by commas.')
_K = flags.DEFINE_integer('k', 10, 'Items to recommend.', lower_bound=1)
_EXCLUDE_SEEN = flags.DEFINE_bool('exclude_seen', False, 'Leave out items of the history.')


def main() -> int:
    if (_USERS.value is None) == (_HISTORY.value is None):
        raise UserError('give either --users or --history')
    workdir = required_workdir()
    enable_compilation_cache()
    saved = load_run(workdir, model_shards=MODEL_SHARDS.value)
    dataset = saved.dataset
    if _USERS.value is not None:
        users = positions(dataset.user_ids, _USERS.value, '--users')
        histories = [dataset.items[dataset.offsets[u]:dataset.offsets[u + 1]] for u in users]
        names = _USERS.value
    else:
        histories = [positions(dataset.item_ids, _HISTORY.value, '--history') + 1]
        names = ['history']
    best = TopItems(saved.network, saved.mesh, saved.params, max_history=saved.config.data.max_history)
    items, scores = best(histories, k=_K.value, exclude=histories if _EXCLUDE_SEEN.value else None)
    lines = []
    for name, row, row_scores in zip(names, items, scores, strict=True):
        for rank, (item, score) in enumerate(zip(row, row_scores, strict=True), start=1):
            if np.isfinite(score):  # fewer than k items are left for a user who has seen nearly all
                lines.append(f'{shown_id(name)}\t{rank}\t{shown_id(dataset.item_ids[item - 1])}\t{score:.6f}\n')
    write_stdout(''.join(lines))
    return 0


def positions(known: np.ndarray | TextIds, wanted: list[str], flag: str) -> np.ndarray:
    """Position in `known` of each wanted original id, int64; UserError names the first that is unknown."""
    found = ids.positions(known, wanted)
    unknown = [w for w, at in zip(wanted, found.tolist(), strict=True) if at < 0]
    if unknown or not wanted:
        example = ', '.join(map(shown_id, known[:3].tolist()))
        what = f'{unknown[0]!r} is not in the prepared log' if unknown else 'no id given'
        raise UserError(f'{flag}: {what} (ids look like {example}; the k-core may have left it out)')
    return found


if __name__ == '__main__':
    run(main)
