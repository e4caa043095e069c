"""RecBole's benchmark files with item lists: a row is a history and the item after it → one row an interaction.

A user may have many rows, each of which repeats what was read before: then it only says what comes next.
"""
import numpy as np
import polars as pl

from ssd4rec_jax.data.splits import PARTS
from ssd4rec_jax.data.tables.batch import Batch


class HistoryLists:
    """What was read of each user in the rows so far, of one file or of several.

    rows: how many there were. repeated: how many of them, in files of held-out rows, had nothing new.
    """

    def __init__(self) -> None:
        self.rows = self.repeated = 0
        self._read: dict[str, list[str]] = {}

    def expanded(self, batch: Batch, part: str) -> Batch:
        """The interactions that the rows of a batch add.

        batch: `frame` has the columns 'user', 'item', which is the item after the history, and 'list', the history's
        items with blanks between them. part: of the file, one of PARTS, or '' where the log is not split by files. Of a
        file of held-out rows the item after the history is a target, and what is new of the history is context.
        """
        users: list[str | None] = []
        items: list[str | None] = []
        parts: list[int] = []
        origin: list[int] = []
        held_out = part in ('valid', 'test')
        self.rows += len(batch.frame)
        for row, (user, target, history) in enumerate(batch.frame.select('user', 'item', 'list').iter_rows()):
            # A row without a user or a target is judged by what reads the result.
            new = self._added(user, (history or '').split(), target) if user and target else [target]
            self.repeated += held_out and not new
            users += [user] * len(new)
            items += new
            parts += [PARTS.index('context' if held_out else 'train')] * (len(new) - 1)
            parts += [PARTS.index(part or 'train')] * (len(new) > 0)
            origin += [row] * len(new)
        frame = pl.DataFrame({'user': users, 'item': items}, schema={'user': pl.String, 'item': pl.String})
        if part:
            frame = frame.with_columns(part=pl.Series(np.asarray(parts, np.int8)))
        return Batch(
            frame, lambda row: batch.place(origin[row]), lambda row: batch.text(origin[row]), batch.broken,
        )

    def _added(self, user: str, history: list[str], target: str) -> list[str]:
        read = self._read.setdefault(user, [])
        whole = [*history, target]
        if read[:len(whole)] == whole:
            return []
        if len(read) >= len(history) and read[len(read) - len(history):] == history:
            new = [target]
        elif whole[:len(read)] == read:
            new = whole[len(read):]
        else:  # another history of the same user
            new = whole
        read += new
        return new
