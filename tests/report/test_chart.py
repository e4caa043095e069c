"""Charts: numbers along the axes, and where the points lie."""
import re

import pytest

from ssd4rec_jax.report.chart import Measured, Series, curves, intervals, short, ticks


@pytest.mark.parametrize('low, high, whole, expected', [
    (0, 1, False, [0, .2, .4, .6, .8, 1]), (1, 3, True, [1, 2, 3]), (0.061, 0.2, False, [.1, .15, .2]),
    (1, 300, True, [100, 200, 300]), (-1, 1, False, [-1, -.5, 0, .5, 1]), (0, 17_300, False, [0, 5000, 10000, 15000]),
])
def test_ticks_are_round_numbers_inside_the_range(low, high, whole, expected):
    assert ticks(low, high, whole=whole) == expected


def test_numbers_are_short():
    assert [short(v) for v in (0.05, 12, 1500, 25_000, 1_200_000, 3e9)] == ['0.05', '12', '1,500', '25k', '1.2M', '3G']


def points(drawing):
    drawn = drawing.partition('<svg viewBox="0 0 480')[2]  # behind the legend
    (found,) = re.findall(r'<polyline class="curve s0" points="([^"]*)">', drawn)
    return [tuple(map(float, pair.split(','))) for pair in found.split()]


def test_points_lie_in_proportion_and_high_values_above():
    (x1, y1), (x2, y2), (x3, y3) = points(curves('T', [Series('a', [1, 2, 4], [0, 1, 3])], x='x', y='y', whole_x=True))
    assert (x3 - x1) / (x2 - x1) == pytest.approx(3, rel=1e-2) and (y3 - y1) / (y2 - y1) == pytest.approx(3, rel=1e-2)
    assert y3 < y1


def test_a_curve_of_many_points_is_thinned_to_means():
    found = points(curves('T', [Series('a', range(4000), [k % 10 for k in range(4000)])], x='x', y='y', whole_x=True))
    assert len(found) == 400 and len({y for _, y in found}) == 1


def test_one_point_and_none_are_drawn_as_well():
    assert len(points(curves('T', [Series('a', [3], [0.5])], x='x', y='y'))) == 1
    assert 'Nothing to draw yet' in curves('T', [Series('a', [], [])], x='x', y='y')
    assert 'Nothing to draw yet' in intervals('T', {'seen in': []}, x='x')


def test_names_are_escaped_and_values_are_said_aloud():
    drawing = intervals('<b>', {'': [Measured('<script>', 0.5, 0.4, 0.6)]}, x='NDCG@10')
    assert '<script>' not in drawing and '<b>' not in drawing
    assert 'aria-label="NDCG@10: &lt;script&gt; 0.5000"' in drawing and '0.5000, 0.4000 to 0.6000' in drawing


def test_of_a_long_name_the_end_is_shown():
    drawing = intervals('T', {'': [Measured(f'a-network-of-some-length={n}', 0.5, 0.4, 0.6) for n in (10, 200)]}, x='x')
    assert '>…network-of-some-length=10<' in drawing and '>…etwork-of-some-length=200<' in drawing
    assert '>a-network<' in intervals('T', {'': [Measured('a-network', 0.5, 0.4, 0.6)]}, x='x')
