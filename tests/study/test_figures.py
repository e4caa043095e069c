"""The picture of accuracy against training time: what stands in it, and that its names can be read."""
import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from experiments import draw_accuracy as draw_accuracy_command
from ssd4rec_jax.study.figures import draw_accuracy
from ssd4rec_jax.study.labels import Point, label
from ssd4rec_jax.study.summary import FORMAT
from tests.commands.in_process import call


def row(name, seconds, value, *, network='', sd=0.001):
    test = {seen: {'NDCG@10': {'mean': value, 'sd': sd, 'n': 3}} for seen in ('in', 'out')}
    cost = {'seconds': 2.0} | ({'train_seconds': seconds} if seconds else {})
    return {'name': name, 'network': network, 'counted': '' if network else name, 'test': test, 'cost': cost}


def summary(*rows):
    unfinished = row('unfinished', 1, 0) | {'test': None, 'cost': None}
    return {'dataset': 'a-log', 'protocols': ['in', 'out'], 'rows': [*rows, unfinished]}


def test_each_network_of_each_study_is_named_once_a_panel(tmp_path):
    first = summary(row('popularity', None, 0.01), row('ours', 30, 0.05, network='ssd4rec', sd=None))
    second = summary(row('peer', 200, 0.04, network='sasrec'))
    png, svg = draw_accuracy([first, summary(row('popularity', None, 0.01)), second], tmp_path / 'made' / 'picture')
    text = svg.read_text()
    assert [text.count(f'>{name}<') for name in ('popularity', 'ours', 'peer', 'unfinished')] == [2, 2, 2, 0]
    assert text.count('>a-log, seen items out<') == 2, 'a study in which nothing is trained has no panels'
    assert png.read_bytes()[:4] == b'\x89PNG' and max(png.stat().st_size, svg.stat().st_size) < 200_000
    kept = svg.read_bytes()
    draw_accuracy([first, second], tmp_path / 'made' / 'picture')
    assert svg.read_bytes() == kept
    assert draw_accuracy([summary(row('popularity', None, 0.01))], tmp_path / 'none') == []


def test_the_command_of_the_picture(tmp_path):
    done = call(draw_accuracy_command.main, f'--folders={tmp_path}')
    assert done.returncode == 1 and 'give --folders, folders of studies, and --output' in done.stderr
    arguments = f'--folders={tmp_path}', f'--output={tmp_path}/picture'
    for rows, code in (([row('popularity', None, 0.01)], 1), ([row('ours', 30, 0.05, network='ssd4rec')], 0)):
        (tmp_path / 'study.json').write_text(json.dumps({'format': FORMAT, **summary(*rows)}))
        assert call(draw_accuracy_command.main, *arguments).returncode == code
        assert (tmp_path / 'picture.png').exists() == (tmp_path / 'picture.svg').exists() == (code == 0)


@pytest.mark.parametrize('seed', range(3))
def test_names_cover_neither_each_other_nor_a_point(seed):
    rng = np.random.default_rng(seed)
    figure = Figure(figsize=(6, 5))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = rng.normal(0.5, 0.14, (14, 2)).clip(0.05, 0.95)
    points = [Point(x, y, y - 0.01, y + 0.01, f'a network {number}') for number, (x, y) in enumerate(places)]
    axes.set(xlim=(0, 1), ylim=(0, 1))
    label(axes, points, size=8)
    renderer = figure.canvas.get_renderer()
    texts = [text for text in axes.texts if text.get_text()]
    assert [text.get_text() for text in texts] == [point.name for point in points]
    boxes = [text.get_window_extent(renderer) for text in texts]
    marks = [
        Bbox.from_extents(*(axes.transData.transform((p.x, p.low)) - 3), *(axes.transData.transform((p.x, p.high)) + 3))
        for p in points
    ]
    frame = axes.get_window_extent(renderer)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in [*boxes[:number], *marks]), texts[number]
        assert frame.contains(*box.min) and frame.contains(*box.max)
