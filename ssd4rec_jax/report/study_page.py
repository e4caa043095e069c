"""The page of a study: its tables and figures, from study.json and the drawings beside it."""
import base64
from pathlib import Path
from typing import Any

from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.report.chart import Measured, intervals
from ssd4rec_jax.report.markup import Html, facts, fill, joined, table, tag
from ssd4rec_jax.report.page import Section, Tile, page, write_page
from ssd4rec_jax.study.folder import StudyFolder
from ssd4rec_jax.study.summary import AGAIN, DECIDING, read_summary
from ssd4rec_jax.study.tables import Table, tables

# What the drawings of a study show, by the names of their files.
_FIGURES = {
    'metrics': 'Test metrics against the setting',
    'cost': 'Training, ranking and memory against the setting',
    'accuracy': f'Test {DECIDING} against seconds of training',
    'training_seconds': 'Validation against seconds of training',
    'history_length': f'{DECIDING} by length of the history',
    'item_popularity': f'{DECIDING} by popularity of the held-out item',
}


def write_study_report(folder: StudyFolder, output: Path | None = None) -> Path:
    """Write the page of a study and return its path, report.html in its folder if no other is named.

    UserError where the folder holds no study or nothing can be written.
    """
    written = output or folder.path / 'report.html'
    summary, drawings = read_summary(folder), _drawings(folder)
    try:
        content = study_page(summary, drawings)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f'{folder.summary} is damaged ({error!r}): {AGAIN}') from error
    write_page(written, content)
    return written


def study_page(summary: dict[str, Any], drawings: dict[str, bytes]) -> Html:
    """The page of a study. summary: the content of study.json. drawings: {name: an SVG file's content}."""
    *rankings, cost = tables(summary)
    finished, cells = summary['finished'], summary['cells']
    sections = [
        Section('ranking', 'Ranking', joined([_compared(summary), *map(_table, rankings)])),
        Section('cost', 'What it costs', _table(cost)),
        Section('cells', 'What was run', _cells(summary)),
    ]
    if drawings:
        sections.insert(2, Section('figures', 'Figures', joined(
            fill(
                'drawing.html', title=_FIGURES.get(name, name),
                source=f'data:image/svg+xml;base64,{base64.b64encode(svg).decode()}',
            )
            for name, svg in drawings.items()
        )))
    return page(
        f'Study, {finished} of {cells} cells have run', f'{summary["study"]} on {summary["dataset"] or "no log yet"}',
        f'{summary["about"]} {_lead(summary)}', _tiles(summary), sections,
    )


def _drawings(folder: StudyFolder) -> dict[str, bytes]:
    """{name: content} of the study's SVG files, those of _FIGURES first."""
    names = sorted((path.stem for path in folder.figures.glob('*.svg')), key=lambda name: (
        list(_FIGURES).index(name) if name in _FIGURES else len(_FIGURES), name
    ))
    return {name: (folder.figures / f'{name}.svg').read_bytes() for name in names}


def _leader(summary: dict[str, Any], seen: str) -> dict[str, Any] | None:
    """The row with the best mean of the deciding metric."""
    name = summary['best'][seen][DECIDING]
    return next((row for row in summary['rows'] if row['name'] == name), None)


def _lead(summary: dict[str, Any]) -> str:
    said = []
    for seen in summary['protocols']:
        if (leader := _leader(summary, seen)) is None:
            continue
        mean = leader['test'][seen][DECIDING]['mean']
        sentence = f'With seen items {seen}, {leader["name"]} has the highest test {DECIDING}, {mean:.4f}'
        apart = (leader['difference'][seen] or {}).get(DECIDING)
        if apart and apart['p'] is not None:
            sentence += f', {apart["mean"]:+.4f} against {summary["against"][seen]} (p = {apart["p"]:.2g})'
        said.append(f'{sentence}.')
    return ' '.join(said) or 'No cell has run yet.'


def _tiles(summary: dict[str, Any]) -> list[Tile]:
    tiles = [Tile('Cells', f'{summary["finished"]} of {summary["cells"]}', 'have run')]
    for seen in summary['protocols']:
        if leader := _leader(summary, seen):
            mean = leader['test'][seen][DECIDING]['mean']
            tiles.append(Tile(f'Best {DECIDING}, seen {seen}', f'{mean:.4f}', leader['name']))
    return tiles


def _compared(summary: dict[str, Any]) -> Html:
    """The mean of each row and its standard deviation over seeds, both protocols side by side."""
    groups = {
        f'seen {seen}': [
            Measured(row['name'], of['mean'], of['mean'] - (of['sd'] or 0), of['mean'] + (of['sd'] or 0))
            for row in summary['rows'] if row['test'] for of in [row['test'][seen][DECIDING]]
        ]
        for seen in summary['protocols']
    }
    return intervals(f'Test {DECIDING}', groups, x=f'{DECIDING} ± standard deviation over seeds')


def _table(of: Table) -> Html:
    return table(of.caption, of.columns, (
        [tag('strong', place.text) if place.is_best else place.text for place in row] for row in of.rows
    ))


def _cells(summary: dict[str, Any]) -> Html:
    about = [
        ('Command', tag('code', summary['command'])), ('Log', summary['dataset'] or ''),
        ('Machines', ', '.join(summary['machines'])),
    ]
    rows = [
        [
            row['name'], row['network'] or f'{row["counted"]} (counts)', row['preset'], ' '.join(row['settings']),
            ', '.join(str(cell['seed']) for cell in row['cells'] if cell['finished'] and cell['seed'] is not None),
            f'{sum(cell["finished"] for cell in row["cells"])} of {len(row["cells"])}',
        ]
        for row in summary['rows']
    ]
    columns = ['row', 'network', 'preset', 'its own settings', 'finished seeds', 'cells that have run']
    return joined([facts('How', about), table('The rows of the study', columns, rows)])
