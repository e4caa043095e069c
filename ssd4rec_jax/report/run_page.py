"""The page of a run: its sections, from what its folder says and from what its best parameters do."""
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from ssd4rec_jax.config.run import described
from ssd4rec_jax.rank.baselines import BASELINES
from ssd4rec_jax.report.chart import Measured, Series, curves, intervals
from ssd4rec_jax.report.facts import Facts, changed_settings
from ssd4rec_jax.report.judged import Judged, ShownItem, ShownUser
from ssd4rec_jax.report.markup import Html, facts, fill, joined, table, tag
from ssd4rec_jax.report.page import Section, Tile, page
from ssd4rec_jax.show.terminal import METRICS, network_name

_KEY = 'NDCG@10'
_CURVES = 'HR@10', 'NDCG@10', 'MRR@10'
_PROTOCOLS = {
    'in': 'all items (seen in, as published tables do)',
    'out': 'the items that a user has not seen yet (seen out)',
}
_GROUPS = {
    'history_length': ('By length of the history', 'items before the held-out one'),
    'item_popularity': ('By popularity of the held-out item', 'times it occurs in training'),
}


def run_page(run: Facts, judged: Judged | None, titles: Mapping[str, str]) -> Html:
    """The page of a run. judged: None leaves out what needs the model. titles: {original id of an item: its title}."""
    name = network_name(run.config.model.name)
    result = run.result
    sections = [
        Section('result', 'Test result', _result(run, judged, name)),
        Section('curves', 'Training', _training(run)),
        Section('setup', 'What was run', _setup(run)),
        Section('cost', 'What it costs', _cost(run)),
    ]
    if judged and judged.by:
        sections.insert(1, Section('groups', 'For whom it works', _groups(judged)))
    if judged and judged.users:
        sections.append(Section('users', 'Ten users', _users(judged, titles)))
    if judged and judged.items:
        sections.append(Section('nearest', 'What lies near', _nearest(judged.items, titles)))
    return page(
        'Training run, finished' if result else 'Training run, not finished', f'{name} on {run.config.dataset}',
        _lead(run, judged), _tiles(run, judged), sections, is_live=result is None,
    )


def _best(run: Facts) -> dict[str, Any] | None:
    """The validation of the epoch that is the best so far."""
    marked = [record for record in run.of_kind('valid') if record.get('best')]
    return marked[-1] if marked else None


def _metric(judged: Judged, protocol: str, who: str, metric: str) -> dict[str, Any]:
    return judged.metrics[protocol][who].row(by_predicate=pl.col('metric') == metric, named=True)


def _lead(run: Facts, judged: Judged | None) -> str:
    result, best = run.result, _best(run)
    if judged and judged.metrics:
        own = _metric(judged, 'in', '', _KEY)
        others = {who: _metric(judged, 'in', who, _KEY)['value'] for who in judged.metrics['in'] if who}
        against = ', '.join(f'{who} {value:.4f}' for who, value in others.items())
        return (
            f'On held-out test items, {_KEY} is {own["value"]:.4f} (95% interval over users {own["low"]:.4f} to '
            f'{own["high"]:.4f}); {against}.'
        )
    if result:
        return f'On held-out test items, {_KEY} is {result["test"][_KEY]:.4f}; popularity {_of(result, "popularity")}.'
    if best:
        epochs = len(run.of_kind('valid'))
        return f'After {epochs} epochs the best validation {_KEY} is {best[_KEY]:.4f}, of epoch {best["epoch"]}.'
    return 'No epoch has ended yet.'


def _of(result: dict[str, Any], baseline: str) -> str:
    return f'{result[baseline]["test"][_KEY]:.4f}' if baseline in result else 'not measured'


def _tiles(run: Facts, judged: Judged | None) -> list[Tile]:
    result, best = run.result, _best(run)
    tiles = []
    if judged and judged.metrics:
        for metric in ('NDCG@10', 'HR@10'):
            own = _metric(judged, 'in', '', metric)
            tiles.append(Tile(f'Test {metric}', f'{own["value"]:.4f}', f'{own["low"]:.4f} to {own["high"]:.4f}'))
    elif result:
        tiles += [Tile(f'Test {metric}', f'{result["test"][metric]:.4f}') for metric in ('NDCG@10', 'HR@10')]
    elif best:
        tiles += [Tile(f'Validation {m}', f'{best[m]:.4f}', f'epoch {best["epoch"]}') for m in ('NDCG@10', 'HR@10')]
    if result:
        tiles += [
            Tile('Epochs', f'{result["epochs"]:,}', f'the best is {result["best_epoch"]:,}'),
            Tile('Training', _duration(result['train_seconds']), f'{result["tokens/s"]:,.0f} tokens/s'),
            Tile('Packing fill', f'{result["packing_fill"]:.1%}', 'of the places for tokens'),
            Tile('Parameters', f'{result["parameters"]:,}'),
        ]
        if 'follower_weight' in result:
            tiles.append(Tile('Weight of followers', f'{result["follower_weight"]:g}', 'chosen by validation'))
    elif best:
        newest = run.records[-1]
        tiles += [Tile('Epoch', f'{newest["epoch"]:,}', f'of at most {run.config.train.max_epochs:,}')]
        if trained := run.of_kind('train'):
            tiles += [Tile('Speed', f'{trained[-1]["tokens/s"]:,.0f}', 'tokens/s')]
    return tiles


def _result(run: Facts, judged: Judged | None, name: str) -> Html:
    if judged and judged.metrics:
        chart = tag('div', *(_compared(judged, metric, name) for metric in ('NDCG@10', 'HR@10')), class_='charts')
        tables = [
            table(
                f'Ranked among {_PROTOCOLS[protocol]}, with 95% bootstrap intervals over users', ['', *METRICS],
                [[who or name, *_cells(frame, _highest(of.values()))] for who, frame in of.items()],
            )
            for protocol, of in judged.metrics.items()
        ]
        seen = (
            f'{judged.seen_targets:.1%} of the held-out items had been seen by their user; ranked among unseen items, '
            'these count as not found.'
        )
        return joined([chart, *tables, tag('p', seen, class_='muted'), _lists(judged.lists)])
    if run.result is None:
        return tag('p', 'The test items are ranked once the run is finished.')
    result = run.result
    rows: dict[str, Any] = {name: result['test']}
    rows |= {baseline: result[baseline]['test'] for baseline in BASELINES if baseline in result}
    return joined([
        table('Test items ranked among all items', ['', *METRICS], [
            [who, *(f'{metrics[metric]:.4f}' for metric in METRICS)] for who, metrics in rows.items()
        ]),
        fill('missing.html', folder=run.folder),
    ])


def _highest(frames: Iterable[pl.DataFrame]) -> dict[str, float]:
    """The highest value of each metric."""
    highest = pl.concat(frames).group_by('metric').agg(pl.col('value').max())
    return dict(zip(highest['metric'].to_list(), highest['value'].to_list(), strict=True))


def _cells(frame: pl.DataFrame, highest: dict[str, float]) -> list[Html]:
    cells = []
    for metric, value, low, high in frame.filter(pl.col('metric').is_in(METRICS)).iter_rows():
        shown = tag('strong' if value == highest[metric] else 'span', f'{value:.4f}')
        cells.append(joined([shown, tag('small', f'{low:.4f} to {high:.4f}')]))
    return cells


def _lists(figures: dict[str, float]) -> Html:
    """The figures of the lists that users are shown: a row for each length."""
    kinds, lengths = (list(dict.fromkeys(name.split('@')[part] for name in figures)) for part in (0, 1))
    return table(
        'The lists that users are shown', ['length', *kinds],
        [[k, *(f'{figures[f"{kind}@{k}"]:.3f}' for kind in kinds)] for k in lengths],
    )


def _compared(judged: Judged, metric: str, name: str) -> Html:
    groups = {
        f'seen {protocol}': [
            Measured(who or name, row['value'], row['low'], row['high'])
            for who in of for row in [_metric(judged, protocol, who, metric)]
        ]
        for protocol, of in judged.metrics.items()
    }
    return intervals(f'Test {metric}', groups, x=f'{metric} and its 95% interval')


def _groups(judged: Judged) -> Html:
    charts = []
    for grouping, frame in judged.by.items():
        title, meaning = _GROUPS[grouping]
        rows = [
            Measured(f'{row["from"]:,} to {row["to"]:,}', row['value'], row['low'], row['high'])
            for row in frame.filter(metric=_KEY).iter_rows(named=True)
        ]
        charts.append(intervals(f'{title} ({meaning})', {'': rows}, x=f'{_KEY} and its 95% interval'))
    return joined([
        tag('p', 'Each row is about a quarter of the held-out items, ranked among all items.'),
        tag('div', *charts, class_='charts'),
    ])


def _training(run: Facts) -> Html:
    evaluated, trained, best = run.of_kind('valid'), run.of_kind('train'), _best(run)
    epochs = [record['epoch'] for record in evaluated]
    losses = [Series('mean of the epoch', epochs, [record['epoch_loss'] for record in evaluated])]
    steps = Series('of a step', *_steps(evaluated, trained), is_faint=True)
    validation = [Series(metric, epochs, [record[metric] for record in evaluated]) for metric in _CURVES]
    timed = [record for record in evaluated if 'train_seconds' in record]  # Older runs did not store it.
    seconds = [record['train_seconds'] for record in timed]
    charts = [
        curves('Training loss', [*losses, steps], x='epochs', y='loss', whole_x=True),
        curves(
            'Validation', validation, x='epochs', y='metric', whole_x=True,
            best=best['epoch'] if best else None,
        ),
        curves(
            'Validation against time', [Series(m, seconds, [record[m] for record in timed]) for m in _CURVES],
            x='seconds of training', y='metric',
            best=best['train_seconds'] if best and 'train_seconds' in best else None,
        ),
        curves(
            'Throughput', [Series('tokens/s', *_steps(evaluated, trained, 'tokens/s'))], x='epochs', y='tokens/s',
            whole_x=True, from_zero=True,
        ),
    ]
    rows = [
        [
            record['epoch'], f'{record["train_seconds"]:,.1f}' if 'train_seconds' in record else '',
            f'{record["epoch_loss"]:.4f}', *(f'{record[m]:.4f}' for m in METRICS), f'{record["packing_fill"]:.1%}',
            'best' if record.get('best') else '',
        ]
        for record in evaluated
    ]
    values = table(
        'Validation after each epoch', ['epoch', 'seconds', 'loss', *METRICS, 'packing fill', 'best so far'], rows
    )
    line = 'The broken line marks the best epoch, whose parameters are kept.' if best else 'No epoch has ended yet.'
    return joined([
        tag('p', line), tag('div', *charts, class_='charts'),
        fill('details.html', summary='The values of these curves', body=values) if rows else '',
    ])


def _steps(
    evaluated: list[dict[str, Any]], trained: list[dict[str, Any]], key: str = 'loss'
) -> tuple[list[float], list[float]]:
    """(where in the epochs the logged steps lie, their values)."""
    ends = {0: 0, **{record['epoch']: record['step'] for record in evaluated}}
    last = max(ends)
    x, y = [], []
    for record in trained:
        epoch, step = record['epoch'], record['step']
        begin = ends.get(epoch - 1)
        # How long the epoch that runs will be, the one before it tells; of the first one nothing does.
        end = ends.get(epoch, (2 * ends[last] - ends.get(last - 1, 0)) if last else max(r['step'] for r in trained))
        if begin is not None and end > begin:
            x.append(epoch - 1 + (step - begin) / (end - begin))
            y.append(record[key])
    return x, y


def _setup(run: Facts) -> Html:
    preset, differ = changed_settings(run.config)
    columns = [facts('The log', run.data)] if run.data else []
    if run.result:
        columns.append(facts('Where it ran', [
            ('Machine', run.result.get('machine', 'not recorded')), ('Backend', run.result['backend']),
            ('Devices', run.result.get('devices', 1)), ('Processes', run.result.get('processes', 1)),
            *run.result.get('versions', {}).items(),
        ]))
    parts = [tag('div', *columns, class_='columns')]
    if preset:
        parts.append(tag('p', f'The settings are those of --preset={preset}' + (', but for these:' if differ else '.')))
    if differ:
        parts.append(table(
            f'Settings that differ from --preset={preset}', ['setting', 'here', preset],
            [[key, _value(own), _value(there)] for key, there, own in differ],
        ))
    rows = [
        [key, _value(each.value), _value(each.default), tag('span', each.meaning, class_='words')]
        for key, each in described(run.config).items()
    ]
    every = table('All settings, their defaults and what they mean', ['setting', 'here', 'default', 'meaning'], rows)
    return joined([*parts, fill('details.html', summary='All settings', body=every)])


def _cost(run: Facts) -> Html:
    result, trained = run.result, run.of_kind('train')
    evaluating = sum(record.get('evaluation_seconds', 0.0) for record in run.of_kind('valid'))
    # A run that goes on knows the speed of its newest steps alone.
    newest = result or (trained[-1] if trained else {})
    seconds, speed = newest.get('train_seconds'), newest.get('tokens/s')
    time = [('Training', 'not recorded' if seconds is None else _duration(seconds))]
    if result:
        time += [
            ('An epoch of it', _duration(result['train_seconds'] / max(result['epochs'], 1))),
            ('Waiting for checkpoints', _duration(result.get('checkpoint_wait_seconds', 0.0))),
        ]
    time.append(('Evaluation after epochs', _duration(evaluating)))
    work = []
    if newest:
        work += [('Tokens a second', f'{speed:,.0f}'), ('Targets a second', f'{newest["targets/s"]:,.0f}')]
        work += [('Packing fill', f'{newest["packing_fill"]:.2%} of the places for tokens')]
    if result:
        work += [
            ('Tokens read', f'{speed * result["train_seconds"]:,.0f}'), ('Parameters', f'{result["parameters"]:,}'),
            ('Most memory', _memory(result.get('peak_memory_bytes'))),
        ]
    said = 'Training is timed without compilation and evaluation; memory is that of the whole process on its host.'
    return joined([
        tag('div', facts('Time', time), facts('Work', work) if work else '', class_='columns'),
        tag('p', said, class_='muted'),
    ])


def _users(judged: Judged, titles: Mapping[str, str]) -> Html:
    about = (
        'From the shortest to the longest history: its newest items, the item that was held out, and the best items '
        'for it' + (', without what the user has already seen.' if judged.seen_out else ', seen ones included.')
    )
    return joined([tag('p', about), tag('div', *(_user(user, titles) for user in judged.users), class_='cards')])


def _user(user: ShownUser, titles: Mapping[str, str]) -> Html:
    earlier = user.length - len(user.newest)
    return fill(
        'user.html', heading=f'User {user.user}', first=earlier + 1,
        about=f'{user.length:,} items' + (f', the newest {len(user.newest)}:' if earlier else ':'),
        history=joined(tag('li', _named(item, titles)) for item in user.newest), target=_named(user.target, titles),
        rank=f'rank {user.rank:,}' if user.rank else 'seen before', list_heading='Recommended',
        items=joined(
            tag('li', _named(item, titles), class_='hit' if item == user.target else 'other') for item in user.items
        ),
    )


def _nearest(items: list[ShownItem], titles: Mapping[str, str]) -> Html:
    cards = [
        fill(
            'nearest.html', heading=_named(each.item, titles), about=f'{each.count:,} interactions',
            items=joined(
                tag('li', tag('span', f'{cosine:.2f}', class_='cosine'), _named(item, titles))
                for item, cosine in each.near
            ),
        )
        for each in items
    ]
    about = 'The ten items that occur most, and those whose vectors have the highest cosine with theirs.'
    return joined([tag('p', about), tag('div', *cards, class_='cards')])


def _named(item: object, titles: Mapping[str, str]) -> Html:
    """An item's title and its id, or its id alone."""
    title = titles.get(str(item))
    return joined([title, ' ', tag('span', item, class_='id')]) if title else joined([str(item)])


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _duration(seconds: float) -> str:
    """2.1 s, 3 min 20 s, 5 h 07 min."""
    if seconds < 60:
        return f'{seconds:.1f} s'
    minutes, rest = divmod(round(seconds), 60)
    return f'{minutes} min {rest:02d} s' if minutes < 60 else f'{minutes // 60} h {minutes % 60:02d} min'


def _memory(size: int | None) -> str:
    return 'not recorded' if size is None else f'{size / 2**30:.2f} GiB'
