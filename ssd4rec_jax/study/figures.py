"""The figures of a study: colour-blind safe, and told apart in grey by markers and line styles."""
import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssd4rec_jax.errors import UserError
from ssd4rec_jax.files import replace_file
from ssd4rec_jax.study.labels import Point, label
from ssd4rec_jax.study.summary import COMPARED, DECIDING

FORMATS = 'png', 'svg'
# Okabe and Ito's colours, each with a marker of its own; the line style changes when they are used up.
_COLOURS = '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#000000', '#E69F00', '#56B4E9'
_MARKERS = 'o', 's', '^', 'D', 'v', 'P', 'X'
_LINES = '-', '--', ':'
_COSTS = {
    'seconds_per_epoch': ('seconds of training an epoch', 1.0),
    'inference_seconds': ('seconds of ranking the test set', 1.0),
    'step_memory_bytes': ('MiB of a train step', 2.0**20),
}
# What networks are told apart by where each point has a name.
_KINDS: dict[str, dict[str, Any]] = {
    'SSD4Rec': {'marker': 'o', 'color': '#D55E00', 'markersize': 7},
    'another network': {'marker': 's', 'color': '#0072B2', 'markerfacecolor': 'white', 'markersize': 6},
    'counts, without training': {'marker': '^', 'color': '#000000', 'markerfacecolor': 'white', 'markersize': 6},
}
_GROUPINGS = {'history_length': 'items of the history', 'item_popularity': "training events of the test item"}


def draw(summary: dict[str, Any], folder: Path) -> list[Path]:
    """Draw what the summary (ssd4rec_jax.study.summary) has figures for, as PNG and SVG, and return the files.

    UserError without matplotlib.
    """
    protocols = len(summary['protocols'])
    drawings: dict[str, tuple[int, int, Callable[[list[Any], dict[str, Any]], None]]] = (
        {'metrics': (protocols, len(COMPARED), _metrics), 'cost': (1, len(_COSTS), _costs)} if summary['x'] else
        {'training_seconds': (1, 1, _curves), **{of: (1, protocols, _by(of)) for of in _GROUPINGS}}
    )
    written = [] if summary['x'] else draw_accuracy([summary], folder / 'accuracy')
    for name, (lines, columns, drawing) in drawings.items():
        figure, grid = _panels(lines, columns)
        axes = list(itertools.chain(*grid))
        if summary['finished']:
            drawing(axes, summary)
        if any(one.has_data() for one in axes):
            _legend(figure, axes[0])
            written += _save(figure, folder / name)
    return written


def draw_accuracy(summaries: list[dict[str, Any]], path: Path) -> list[Path]:
    """Draw the test NDCG@10 of each network against the seconds of its training, and return the files.

    A line of panels for each study, one for each protocol; means over seeds and their standard deviations. Rankings
    that count need no training and stand on the left edge. path: of the files without their extension. A study in which
    no network is trained has no panels. UserError without matplotlib.
    """
    shown = [summary for summary in summaries if any('train_seconds' in (row['cost'] or ()) for row in summary['rows'])]
    if not shown:
        return []
    figure, lines = _panels(len(shown), len(shown[0]['protocols']))
    named = [
        (one, _accuracy(one, summary, seen))
        for summary, line in zip(shown, lines, strict=True)
        for seen, one in zip(summary['protocols'], line, strict=True)
    ]
    for line in lines:
        line[0].set_ylabel(f'test {DECIDING}')
    for one in lines[-1]:
        one.set_xlabel('seconds of training')
    _legend(figure, lines[0][0], loc='outside upper center', ncols=len(_KINDS))
    figure.draw_without_rendering()  # Names have their places once the panels have theirs.
    for one, points in named:
        label(one, points, size=8)
    return _save(figure, path)


def _panels(lines: int, columns: int) -> tuple[Any, list[list[Any]]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("a picture needs matplotlib: pip install 'ssd4rec-jax[plots]'") from error
    figure = Figure(figsize=(1.5 + 4 * columns, 4 * lines), layout='constrained')
    FigureCanvasAgg(figure)  # one that measures text
    return figure, figure.subplots(lines, columns, squeeze=False).tolist()


def _legend(figure: Any, axes: Any, **place: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, fontsize='small', **({'loc': 'outside right upper'} | place))


def _save(figure: Any, path: Path) -> list[Path]:
    """Write the figure as path.png and path.svg."""
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in FORMATS:
        image = io.BytesIO()
        # The same figures give the same file, and text in it can be read and searched.
        with rc_context({'svg.fonttype': 'none', 'svg.hashsalt': path.name}):
            figure.savefig(image, format=kind, dpi=120, metadata={'Date': None} if kind == 'svg' else None)
        written.append(path.with_name(f'{path.name}.{kind}'))
        replace_file(written[-1], lambda out, image=image: out.write(image.getvalue()))  # type: ignore[misc]
    return written


def _accuracy(axes: Any, summary: dict[str, Any], seen: str) -> list[Point]:
    """One panel without names, and the points to be named, SSD4Rec's first."""
    done = [row for row in summary['rows'] if row['test']]
    seconds = [row['cost']['train_seconds'] for row in done if not row['counted']]
    edge, end = min(seconds) / 2, max(seconds) * 2
    found = []
    for kind, style in _KINDS.items():
        points = []
        for row in (row for row in done if _kind(row) == kind):
            of = row['test'][seen][DECIDING]
            mean, sd = of['mean'], of['sd'] or 0
            points.append(Point(row['cost'].get('train_seconds', edge), mean, mean - sd, mean + sd, row['name']))
        if not points:
            continue
        axes.errorbar(
            [p.x for p in points], [p.y for p in points], yerr=[p.high - p.y for p in points], label=kind,
            linestyle='', capsize=2, elinewidth=1, clip_on=False, zorder=3, **style,
        )
        found += points
    ticks = [digit * 10.0**power for power in range(-3, 8) for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if edge <= tick <= end]
    axes.set(
        xscale='log', xlim=(edge, end), title=f'{summary["dataset"]}, seen items {seen}',
    )
    axes.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
    axes.minorticks_off()
    axes.margins(y=0.12)
    axes.grid(alpha=0.3)
    return found


def _kind(row: dict[str, Any]) -> str:
    ours, peer, counted = _KINDS
    return counted if row['counted'] else ours if row['network'] == 'ssd4rec' else peer


def _styles() -> Any:
    """Keyword arguments of one line after another."""
    for line, (colour, marker) in itertools.product(_LINES, zip(_COLOURS, _MARKERS, strict=True)):
        yield {'color': colour, 'marker': marker, 'linestyle': line, 'markersize': 5}
    yield from _styles()


def _series(summary: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The finished rows of each line of a study that varies a setting."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in summary['rows']:
        if row['test']:
            found.setdefault(row['series'], []).append(row)
    return found


def _places(summary: dict[str, Any]) -> dict[Any, float]:
    """Where each value of the setting stands: numbers on their scale, others, and lengths of which one is 'all', in a
    row."""
    values = summary['values']
    if all(isinstance(value, (int, float)) for value in values) and not (_is_length(summary) and 0 in values):
        return {value: value for value in values}
    return {value: place for place, value in enumerate(values)}


def _is_length(summary: dict[str, Any]) -> bool:
    return summary['x'] == 'data.max_history'


def _at_values(axes: Any, summary: dict[str, Any]) -> None:
    """Mark each value of the setting, and write those that have room for it."""
    places = _places(summary)
    room = 0.065 * (max(places.values()) - min(places.values()))
    labels, last = [], -float('inf')
    for value, place in places.items():
        written = abs(place - last) >= room
        last = place if written else last
        labels.append('' if not written else 'all' if _is_length(summary) and value == 0 else f'{value}')
    axes.set_xticks(list(places.values()), labels)
    axes.set_xlabel(summary['x'])


def _metrics(axes: list[Any], summary: dict[str, Any]) -> None:
    places = _places(summary)
    for one, (seen, metric) in zip(axes, itertools.product(summary['protocols'], COMPARED), strict=True):
        for (name, rows), style in zip(_series(summary).items(), _styles(), strict=False):
            found = [row['test'][seen][metric] for row in rows]
            one.errorbar(
                [places[row['x']] for row in rows], [value['mean'] for value in found],
                yerr=[value['sd'] or 0 for value in found], capsize=3, label=name, **style,
            )
        _at_values(one, summary)
        one.set_ylabel(f'test {metric}, seen items {seen}')


def _costs(axes: list[Any], summary: dict[str, Any]) -> None:
    places = _places(summary)
    for one, (key, (title, unit)) in zip(axes, _COSTS.items(), strict=True):
        for (name, rows), style in zip(_series(summary).items(), _styles(), strict=False):
            found = [(row['x'], row['cost'][key] / unit) for row in rows if key in row['cost']]
            one.plot([places[x] for x, _ in found], [value for _, value in found], label=name, **style)
        _at_values(one, summary)
        one.set(ylabel=title, ylim=(0, None))


def _curves(axes: list[Any], summary: dict[str, Any]) -> None:
    """Of each row the seed that comes first; the seconds are those of training steps alone."""
    with_curves = [row for row in summary['rows'] if row['curves']]
    for row, style in zip(with_curves, _styles(), strict=False):
        points = row['curves'][0]['points']
        axes[0].plot(
            [seconds for _, seconds, _ in points], [value for _, _, value in points], label=row['name'],
            markevery=max(1, len(points) // 8), **style,
        )
    axes[0].set(xlabel='seconds of training', ylabel=f'validation {DECIDING}', xscale='log')


def _by(grouping: str) -> Callable[[list[Any], dict[str, Any]], None]:
    def drawing(axes: list[Any], summary: dict[str, Any]) -> None:
        done = [row for row in summary['rows'] if row['by']]
        for one, seen in zip(axes, summary['protocols'], strict=True):
            for row, style in zip(done, _styles(), strict=False):
                one.plot([quarter[seen] for quarter in row['by'][grouping]], label=row['name'], **style)
            shown = [f'{q["from"]:,} to {q["to"]:,}' for q in done[0]['by'][grouping]] if done else []
            one.set_xticks(range(len(shown)), shown)
            one.set(xlabel=_GROUPINGS[grouping], ylabel=f'test {DECIDING}, seen items {seen}', ylim=(0, None))

    return drawing
