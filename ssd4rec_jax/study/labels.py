"""Names beside the points of a figure, where they cover neither each other nor a point."""
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

# In typographic points: from a point to its name, from where on a line joins them, half the width of a point, and the
# room around a name.
_DISTANCES, _LINE_FROM, _MARK, _ROOM = (6, 9, 14, 20, 28, 38, 50), 14, 4, 1
# To the right and left, above and below, and between these.
_DIRECTIONS = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [1, -1], [-1, 1], [-1, -1]])


class Point(NamedTuple):
    """A point in the coordinates of the data, the ends of its error bar, and its name."""

    x: float
    y: float
    low: float
    high: float
    name: str


class _Box(NamedTuple):
    """A rectangle, in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def around(cls, middle: np.ndarray, shape: np.ndarray) -> '_Box':
        return cls(*(middle - shape / 2), *(middle + shape / 2))

    def shared(self, other: '_Box') -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)


def label(axes: Any, points: list[Point], *, size: float) -> None:
    """Write the name of each point beside it, at the nearest free place; earlier points choose first.

    axes: of matplotlib, in their final place and with their final limits, on a canvas that can measure text. size: of
    the letters, in typographic points. Where no place is free, the one is taken where least is covered.
    """
    renderer, unit = axes.figure.canvas.get_renderer(), axes.figure.dpi / 72
    frame = _Box(*axes.get_window_extent(renderer).extents)
    at = [axes.transData.transform([(p.x, p.y), (p.x, p.low), (p.x, p.high)]) for p in points]
    taken = [
        _Box(x - _MARK * unit, low - _MARK * unit, x + _MARK * unit, high + _MARK * unit)
        for (x, _), (_, low), (_, high) in at
    ]

    def covered(place: _Place) -> float:
        """The area of other things that it covers, and of itself that lies outside, in whole pixels."""
        name = place.boxes[0]
        outside = name.shared(name) - name.shared(frame)
        return round(outside + sum(box.shared(other) for box in place.boxes for other in taken))

    for point, (centre, *_) in zip(points, at, strict=True):
        text = axes.annotate(
            point.name, (point.x, point.y), (0, 0), textcoords='offset points', ha='center', va='center', fontsize=size
        )
        text.set_in_layout(False)
        extent = text.get_window_extent(renderer)
        places = _places(centre, np.array([extent.width, extent.height]) + 2 * _ROOM * unit, unit)
        best = min(places, key=covered)  # the first and nearest of those that are free
        text.set_position((best.middle - centre) / unit)
        if len(best.boxes) > 1:
            line = {'arrowstyle': '-', 'linewidth': 0.5, 'color': '0.5', 'shrinkA': 0, 'shrinkB': _MARK}
            axes.annotate(
                '', (point.x, point.y), (best.end - centre) / unit, textcoords='offset points', arrowprops=line
            ).set_in_layout(False)
        taken += best.boxes


class _Place(NamedTuple):
    """Where a name may stand, in pixels: its middle, where a line from the point meets it, and what both cover."""

    middle: np.ndarray
    end: np.ndarray
    boxes: list[_Box]


def _places(centre: np.ndarray, shape: np.ndarray, unit: float) -> Iterator[_Place]:
    """The places of a name of this width and height around a point, the nearest first. unit: a typographic point."""
    for distance in _DISTANCES:
        for direction in _DIRECTIONS:
            end = centre + direction * distance * unit
            middle = end + direction * shape / 2
            way = np.linspace(0.4, 0.9, 12 if distance >= _LINE_FROM else 0)
            line = [_Box.around(centre + share * (end - centre), np.array([unit, unit])) for share in way]
            yield _Place(middle, end, [_Box.around(middle, shape), *line])
