"""Finding items and users by a part of their text."""
import bisect
from collections.abc import Sequence

_LOOKED_AT = 1000  # entries that a search gathers before the best are taken


class Search:
    """Finds entries whose text holds a part, whatever the case; the texts lie end to end, so that this is fast.

    texts: one for each entry. order: the entries from the most to the least important.
    """

    def __init__(self, texts: Sequence[str], order: Sequence[int]):
        lines = [texts[entry].replace('\n', ' ').lower() for entry in order]
        self._order, self._all = order, '\n'.join(lines)
        self._starts: list[int] = []
        at = 0
        for line in lines:
            self._starts.append(at)
            at += len(line) + 1

    def find(self, part: str, limit: int) -> list[int]:
        """The most important entries that hold a part, those that begin with it first; the first ones for no part."""
        part = part.replace('\n', ' ').strip().lower()
        if not part:
            return list(self._order[:limit])
        found: list[tuple[bool, int]] = []
        at = self._all.find(part)
        while at >= 0 and len(found) < _LOOKED_AT:
            line = bisect.bisect_right(self._starts, at) - 1
            found.append((at != self._starts[line], line))
            following = self._starts[line + 1] if line + 1 < len(self._starts) else len(self._all)
            at = self._all.find(part, following)
        return [self._order[line] for _, line in sorted(found)[:limit]]
