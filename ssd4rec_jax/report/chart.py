"""Charts as SVG that take their colours from the page, so that one drawing serves light and dark, and grey."""
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ssd4rec_jax.report.markup import Html, fill, joined, tag

_WIDTH, _HEIGHT, _ROW = 480, 270, 30  # of the drawing's own units, about a pixel each
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 10, 42
_COLOURS = 5
_LONGEST_NAME = 26  # characters, which half of the drawing holds on a phone too
_MOST_MARKS, _MOST_POINTS = 40, 400  # beyond which a curve has no marks, and is drawn through means of points


class Series(NamedTuple):
    """A curve: its name, and where its points lie. A faint one is drawn thin and without marks."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    is_faint: bool = False


class Measured(NamedTuple):
    """A value, the interval that it lies in, and what it is of."""

    name: str
    value: float
    low: float
    high: float


def short(value: float) -> str:
    """A number as an axis shows it: 0.05, 12, 1,500, 25k, 1.2M."""
    for unit, letter in ((1e9, 'G'), (1e6, 'M'), (1e4, 'k')):
        if abs(value) >= unit:
            size = unit if unit > 1e4 else 1e3
            return f'{value / size:.4g}{letter}'
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'


def ticks(low: float, high: float, most: int = 6, *, whole: bool = False) -> list[float]:
    """Round numbers, evenly spaced and at most so many, between two numbers. whole: whole numbers alone."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next((factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= most - 1), 50)
    step = max(step, 1.0) if whole else step
    return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def curves(
    title: str, series: Sequence[Series], *, x: str, y: str, whole_x: bool = False, from_zero: bool = False,
    best: float | None = None,
) -> Html:
    """Curves in one frame; x and y say what the axes show. best: a place on the x axis that is marked."""
    drawn = [_thinned(each) for each in series if len(each.x)]
    if not drawn:
        return fill('empty.html', title=title)
    at_x = _Scale.of([v for s in drawn for v in s.x], _LEFT, _WIDTH - _RIGHT, whole=whole_x)
    at_y = _Scale.of([v for s in drawn for v in s.y] + [0.0] * from_zero, _HEIGHT - _BOTTOM, _TOP)
    marks = [*_frame(at_x, at_y, x, y, _HEIGHT)]
    if best is not None:
        marks.append(_line(at_x(best), _TOP, at_x(best), _HEIGHT - _BOTTOM, 'best'))
    for number, each in enumerate(drawn):
        own = f's{number % _COLOURS}'
        places = [(at_x(a), at_y(b)) for a, b in zip(each.x, each.y, strict=True)]
        kind = f'curve {own}' + ' faint' * each.is_faint
        marks.append(tag('polyline', class_=kind, points=' '.join(f'{a:.1f},{b:.1f}' for a, b in places)))
        if len(places) <= _MOST_MARKS and not each.is_faint:
            marks += [
                _mark(number, a, b, f'{each.name}: {short(value)} at {short(place)}')
                for (a, b), place, value in zip(places, each.x, each.y, strict=True)
            ]
    ends = '; '.join(f'{s.name} from {short(s.y[0])} to {short(s.y[-1])}' for s in drawn)
    return _chart(title, f'{y} against {x}: {ends}', marks, _HEIGHT, drawn)


def intervals(title: str, groups: Mapping[str, Sequence[Measured]], *, x: str) -> Html:
    """Values with their intervals, one below another; {name of a group: the same rows in each}."""
    rows = list(dict.fromkeys(row.name for group in groups.values() for row in group))
    if not rows:
        return fill('empty.html', title=title)
    height = _TOP + _BOTTOM + _ROW * len(rows)
    left = min(40 + 6.6 * max(map(len, rows)), _WIDTH / 2)
    at_x = _Scale.of([v for group in groups.values() for row in group for v in row[1:]] + [0.0], left, _WIDTH - _RIGHT)
    marks = [
        part for value in at_x.ticks for part in (
            _line(at_x(value), _TOP, at_x(value), height - _BOTTOM, 'grid'),
            _text(at_x(value), height - _BOTTOM + 16, short(value), 'middle'),
        )
    ]
    marks.append(_text(_WIDTH / 2, height - 6, x, 'middle'))
    for row, name in enumerate(rows):
        # Names differ at their ends; the tables have them whole.
        told = name if len(name) <= _LONGEST_NAME else '…' + name[1 - _LONGEST_NAME:]
        marks.append(_text(left - 12, _TOP + _ROW * (row + .5) + 4, told, 'end', 'name'))
        for number, group in enumerate(groups.values()):
            for measured in (each for each in group if each.name == name):
                at = _TOP + _ROW * (row + (number + 1) / (len(groups) + 1))
                label = f'{measured.value:.4f}, {measured.low:.4f} to {measured.high:.4f}'
                marks.append(_line(at_x(measured.low), at, at_x(measured.high), at, f'whisker s{number}'))
                marks.append(_mark(number, at_x(measured.value), at, label))
    said = '; '.join(f'{row.name} {row.value:.4f}' for group in groups.values() for row in group)
    names = [Series(name, (), ()) for name in groups] if len(groups) > 1 else []
    return _chart(title, f'{x}: {said}', marks, height, names)


class _Scale(NamedTuple):
    """Numbers from low to high lie from start to stop on the drawing."""

    low: float
    high: float
    start: float
    stop: float
    ticks: list[float]

    @classmethod
    def of(cls, values: Sequence[float], start: float, stop: float, *, whole: bool = False) -> '_Scale':
        low, high = min(values), max(values)
        if low == high:  # A lone value lies in the middle.
            low, high = (low - 1, high + 1) if whole else (low - abs(low) / 2 - 1e-9, high + abs(high) / 2 + 1e-9)
        margin = 0 if whole else (high - low) * 0.04
        low, high = (low if low == 0 else low - margin), high + margin
        return cls(low, high, start, stop, ticks(low, high, whole=whole))

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def _frame(at_x: _Scale, at_y: _Scale, x: str, y: str, height: int) -> list[Html]:
    """Grid, axes, the numbers along them and what they show."""
    bottom, right = height - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for value in at_y.ticks:
        parts += [_line(_LEFT, at_y(value), right, at_y(value), 'grid')]
        parts += [_text(_LEFT - 6, at_y(value) + 4, short(value), 'end')]
    for value in at_x.ticks:
        parts += [_line(at_x(value), bottom, at_x(value), bottom + 4, 'axis')]
        parts += [_text(at_x(value), bottom + 17, short(value), 'middle')]
    middle = (_TOP + bottom) / 2
    return [
        *parts, _line(_LEFT, bottom, right, bottom, 'axis'), _text((_LEFT + right) / 2, height - 6, x, 'middle'),
        tag('text', y, x=11, y=f'{middle:.1f}', text_anchor='middle', transform=f'rotate(-90 11 {middle:.1f})'),
    ]


def _chart(title: str, label: str, marks: Sequence[Html], height: float, named: Sequence[Series]) -> Html:
    entries = [tag('li', _swatch(number, each.is_faint), each.name) for number, each in enumerate(named)]
    return fill(
        'chart.html', title=title, label=label, width=_WIDTH, height=f'{height:g}',
        legend=tag('ul', *entries, class_='legend') if entries else '', marks=joined(marks, '\n'),
    )


def _swatch(number: int, is_faint: bool) -> Html:
    line = tag('polyline', class_=f'curve s{number % _COLOURS}' + ' faint' * is_faint, points='0,6 30,6')
    return tag('svg', line, '' if is_faint else _mark(number, 15, 6), viewBox='0 0 30 12', aria_hidden='true')


def _mark(number: int, x: float, y: float, title: str = '') -> Html:
    """A point, whose shape and colour are those of the series; title: what pointing at it shows."""
    shape = _SHAPES[number % _COLOURS]
    return tag('path', tag('title', title) if title else '', class_=f'point s{number % _COLOURS}', d=shape(x, y))


def _polygon(*corners: tuple[float, float]) -> Callable[[float, float], str]:
    return lambda x, y: 'M' + 'L'.join(f'{x + a:.1f} {y + b:.1f}' for a, b in corners) + 'Z'


def _disc(x: float, y: float) -> str:
    return f'M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z'


_SHAPES: tuple[Callable[[float, float], str], ...] = (
    _disc, _polygon((-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)), _polygon((0, -5), (4.6, 3.6), (-4.6, 3.6)),
    _polygon((0, -5), (5, 0), (0, 5), (-5, 0)), _polygon((0, 5), (4.6, -3.6), (-4.6, -3.6)),
)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    return tag('line', class_=kind, x1=f'{x1:.1f}', y1=f'{y1:.1f}', x2=f'{x2:.1f}', y2=f'{y2:.1f}')


def _text(x: float, y: float, text: str, anchor: str, kind: str = '') -> Html:
    return tag('text', text, class_=kind, x=f'{x:.1f}', y=f'{y:.1f}', text_anchor=anchor)


def _thinned(series: Series) -> Series:
    """A curve through the means of neighbouring points where it has too many."""
    each = -(-len(series.x) // _MOST_POINTS)
    if each == 1:
        return series
    parts = [slice(start, start + each) for start in range(0, len(series.x), each)]
    x, y = ([sum(values[part]) / len(values[part]) for part in parts] for values in (series.x, series.y))
    return series._replace(x=x, y=y)
