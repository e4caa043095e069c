"""The tables of a study as Markdown and LaTeX; what has not run is an empty place, what there is not a dash."""
from collections.abc import Callable
from typing import Any, NamedTuple

from ssd4rec_jax.study.summary import DECIDING

_PROTOCOLS = {'in': 'seen items ranked too', 'out': 'seen items left out'}
_NONE = '–'  # where a row has run and has no such figure
_LATEX = {
    '\\': '\\textbackslash{}', '^': '\\textasciicircum{}', '~': '\\textasciitilde{}', '±': '$\\pm$', _NONE: '--',
    '<': '$<$', '>': '$>$',
}
_COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    'parameters': ('parameters', lambda n: f'{n:,.0f}'),
    'epochs': ('epochs', lambda n: f'{n:.0f}'),
    'seconds_per_epoch': ('s an epoch', lambda s: f'{s:.1f}'),
    'tokens_per_second': ('tokens/s', lambda n: f'{n:,.0f}'),
    'train_seconds': ('training s', lambda s: f'{s:.0f}'),
    'inference_seconds': ('ranking s', lambda s: f'{s:.1f}'),
    'step_memory_bytes': ('step MiB', lambda b: f'{b / 2**20:.0f}'),
    'packing_fill': ('tokens wasted', lambda share: f'{1 - share:.1%}'),
    'interactions_lost': ('interactions lost', lambda share: f'{share:.1%}'),
}


class Text(NamedTuple):
    """A place of a table: its text, and whether it is the best of its column."""

    text: str
    is_best: bool = False


class Table(NamedTuple):
    """caption, the names of columns, and rows of as many places."""

    caption: str
    columns: list[str]
    rows: list[list[Text]]


def tables(summary: dict[str, Any]) -> list[Table]:
    """The tables of a summary (ssd4rec_jax.study.summary): one for each protocol, and what the rows cost."""
    return [*(_ranking(summary, seen) for seen in summary['protocols']), _cost(summary)]


def markdown(summary: dict[str, Any]) -> str:
    """All tables as Markdown, the best of each column in bold."""
    parts = [f'# {summary["study"]} on {summary["dataset"] or "a log that no cell has read yet"}', _about(summary)]
    for table in tables(summary):
        lines = [_line(table.columns), _line(['---', *['---:'] * (len(table.columns) - 1)])]
        lines += [_line([f'**{t.text}**' if t.is_best else t.text for t in row]) for row in table.rows]
        parts += [table.caption, '\n'.join(lines)]
    return '\n\n'.join(parts) + '\n'


def latex(summary: dict[str, Any]) -> str:
    """All tables as LaTeX, for the package booktabs, the best of each column in bold."""
    parts = []
    for table in tables(summary):
        rows = [
            [f'\\textbf{{{_escaped(t.text)}}}' if t.is_best else _escaped(t.text) for t in row] for row in table.rows
        ]
        parts.append('\n'.join([
            '\\begin{table}', '\\centering', f'\\caption{{{_escaped(table.caption)}}}',
            f'\\begin{{tabular}}{{l{"r" * (len(table.columns) - 1)}}}', '\\toprule',
            ' & '.join(map(_escaped, table.columns)) + r' \\', '\\midrule',
            *(' & '.join(row) + r' \\' for row in rows), '\\bottomrule', '\\end{tabular}', '\\end{table}',
        ]))
    return '\n\n'.join(parts) + '\n'


def _about(summary: dict[str, Any]) -> str:
    machines = f' On {", ".join(summary["machines"])}.' if summary['machines'] else ''
    return (
        f'{summary["about"]} {summary["finished"]} of {summary["cells"]} cells have run; places of others are empty. '
        f'Mean ± standard deviation over seeds, test set, all items ranked, each user counted once.{machines}'
    )


def _ranking(summary: dict[str, Any], seen: str) -> Table:
    against = summary['against'][seen]
    tests = {row['name']: row['test'][seen] for row in summary['rows'] if row['test']}
    best = {metric: tests[name][metric]['mean'] for metric, name in summary['best'][seen].items() if name in tests}
    chose = f'validation {DECIDING}'  # It ranks seen items too.
    columns = ['row', 'seeds', *([chose] if seen == 'in' else []), *summary['metrics']]
    if against:
        columns += [f'{DECIDING} less {against}', '95% interval', 'p']
    rows = []
    for row in summary['rows']:
        test = row['test'] and row['test'][seen]
        places = [Text(row['name']), Text(_seeds(row) if test else '')]
        if chose in columns:
            places.append(Text(_spread(row['valid'][DECIDING]) if row['valid'] else _NONE if test else ''))
        places += [
            Text(_spread(test[metric]), test[metric]['mean'] == best.get(metric)) if test else Text('')
            for metric in summary['metrics']
        ]
        if against:
            apart = row['difference'][seen] and row['difference'][seen][DECIDING]
            places += [
                Text(f'{apart["mean"]:+z.4f}{_of_seeds(apart, test)}'),
                Text(f'{apart["low"]:+z.4f} to {apart["high"]:+z.4f}'), Text(_p(apart['p'])),
            ] if apart else [Text(_NONE if test else '')] * 3
        rows.append(places)
    apart = [row['difference'][seen][DECIDING] for row in summary['rows'] if row['difference'][seen]] if against else []
    drawn = 'users and seeds' if any(one['seeds'] > 1 for one in apart) else 'users'  # One seed says nothing of seeds.
    compared = f' Differences of {DECIDING} from {against}: bootstrap over {drawn}, paired t-test over users.'
    return Table(f'Ranking, {_PROTOCOLS[seen]}.{compared if against else ""}', columns, rows)


def _cost(summary: dict[str, Any]) -> Table:
    rows = [
        [Text(row['name']), *(
            Text('' if not row['cost'] else shown(row['cost'][name]) if name in row['cost'] else _NONE)
            for name, (_, shown) in _COSTS.items()
        )]
        for row in summary['rows']
    ]
    return Table('Cost, mean over seeds.', ['row', *(title for title, _ in _COSTS.values())], rows)


def _seeds(row: dict[str, Any]) -> str:
    finished = sum(cell['finished'] for cell in row['cells'])
    return f'{finished} of {len(row["cells"])}' if finished < len(row['cells']) else f'{finished}'


def _of_seeds(apart: dict[str, Any], test: dict[str, Any]) -> str:
    """Said where a difference rests on fewer seeds than the means beside it."""
    seeds = max(value['n'] for value in test.values())
    return '' if apart['seeds'] >= seeds else f' ({apart["seeds"]} of {seeds} seeds)'


def _spread(value: dict[str, Any]) -> str:
    sd = '' if value['sd'] is None else f' ± {value["sd"]:.4f}'
    return f'{value["mean"]:.4f}{sd}'


def _p(p: float | None) -> str:
    if p is None:
        return _NONE
    return '< .0001' if p < 1e-4 else f'{p:.4f}'


def _line(places: list[str]) -> str:
    return f'| {" | ".join(place.replace("|", chr(92) + "|") for place in places)} |'


def _escaped(text: str) -> str:
    return ''.join(_LATEX.get(c, f'\\{c}' if c in '_%&#${}' else c) for c in text)
