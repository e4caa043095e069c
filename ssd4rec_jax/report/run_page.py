"""The page of a run: its sections, from what its folder says and from what its best parameters do."""
from collections.abc import Mapping
from typing import Any

import polars as pl

from ssd4rec_jax.config.run import described
from ssd4rec_jax.report.chart import Measured, Series, curves, intervals
from ssd4rec_jax.report.facts import Facts, changed_settings
from ssd4rec_jax.report.judged import Judged, ShownItem, ShownUser
from ssd4rec_jax.report.markup import Html, fill, joined, table, tag
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


def run_page(facts: Facts, judged: Judged | None, titles: Mapping[str, str]) -> Html:
    """The page of a run. judged: None leaves out what needs the model. titles: {original id of an item: its title}."""
    name = network_name(facts.config.model.name)
    result = facts.result
    sections = [
        Section('result', 'Test result', _result(facts, judged, name)),
        Section('curves', 'Training', _training(facts)),
        Section('setup', 'What was run', _setup(facts)),
        Section('cost', 'What it costs', _cost(facts)),
    ]
    if judged and judged.by:
        sections.insert(1, Section('groups', 'For whom it works', _groups(judged)))
    if judged and judged.users:
        sections.append(Section('users', 'Ten users', _users(judged, titles)))
    if judged and judged.items:
        sections.append(Section('nearest', 'What lies near', _nearest(judged.items, titles)))
    return page(
        'Training run, finished' if result else 'Training run, not finished', f'{name} on {facts.config.dataset}',
        _lead(facts, judged), _tiles(facts, judged), sections, is_live=result is None,
    )


def _best(facts: Facts) -> dict[str, Any] | None:
    """The validation of the epoch that is the best so far."""
    marked = [record for record in facts.of_kind('valid') if record.get('best')]
    return marked[-1] if marked else None


def _metric(judged: Judged, protocol: str, who: str, metric: str) -> dict[str, Any]:
    return judged.metrics[protocol][who].row(by_predicate=pl.col('metric') == metric, named=True)


def _lead(facts: Facts, judged: Judged | None) -> str:
    result, best = facts.result, _best(facts)
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
        epochs = len(facts.of_kind('valid'))
        return f'After {epochs} epochs the best validation {_KEY} is {best[_KEY]:.4f}, of epoch {best["epoch"]}.'
    return 'No epoch has ended yet.'


def _of(result: dict[str, Any], baseline: str) -> str:
    return f'{result[baseline]["test"][_KEY]:.4f}' if baseline in result else 'not measured'


def _tiles(facts: Facts, judged: Judged | None) -> list[Tile]:
    result, best = facts.result, _best(facts)
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
    elif best:
        newest = facts.records[-1]
        tiles += [Tile('Epoch', f'{newest["epoch"]:,}', f'of at most {facts.config.train.max_epochs:,}')]
        if trained := facts.of_kind('train'):
            tiles += [Tile('Speed', f'{trained[-1]["tokens/s"]:,.0f}', 'tokens/s')]
    return tiles


def _result(facts: Facts, judged: Judged | None, name: str) -> Html:
    if judged and judged.metrics:
        chart = tag('div', *(_compared(judged, protocol, name) for protocol in judged.metrics), class_='charts')
        tables = [
            table(
                f'Test items ranked among {_PROTOCOLS[protocol]}, with 95% bootstrap intervals over users', ['', *METRICS],
                [[who or name, *_cells(frame)] for who, frame in of.items()],
            )
            for protocol, of in judged.metrics.items()
        ]
        seen = (
            f'{judged.seen_targets:.1%} of the held-out items had been seen by their user; ranked among unseen items, '
            'these count as not found.'
        )
        lists = '; '.join(f'{what} {value:.3f}' for what, value in judged.lists.items())
        return joined([chart, *tables, tag('p', seen, class_='muted'), tag('p', f'The lists: {lists}.', class_='muted')])
    if facts.result is None:
        return tag('p', 'The test items are ranked once the run is finished.')
    result = facts.result
    rows = {name: result['test'], **{o: result[o]['test'] for o in ('popularity', 'transition') if o in result}}
    return joined([
        table('Test items ranked among all items', ['', *METRICS], [
            [who, *(f'{metrics[metric]:.4f}' for metric in METRICS)] for who, metrics in rows.items()
        ]),
        fill('missing.html', folder=facts.folder),
    ])


def _cells(frame: pl.DataFrame) -> list[Html]:
    of = {row['metric']: row for row in frame.iter_rows(named=True)}
    return [
        joined([f'{of[m]["value"]:.4f}', tag('small', f'{of[m]["low"]:.4f} to {of[m]["high"]:.4f}')]) for m in METRICS
    ]


def _compared(judged: Judged, protocol: str, name: str) -> Html:
    rows = [
        Measured(who or name, row['value'], row['low'], row['high'])
        for who in judged.metrics[protocol] for row in [_metric(judged, protocol, who, _KEY)]
    ]
    return intervals(f'Test {_KEY}, seen {protocol}', {'': rows}, x=f'{_KEY} and its 95% interval')


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


def _training(facts: Facts) -> Html:
    evaluated, trained, best = facts.of_kind('valid'), facts.of_kind('train'), _best(facts)
    epochs = [record['epoch'] for record in evaluated]
    losses = [Series('mean of the epoch', epochs, [record['epoch_loss'] for record in evaluated])]
    steps = Series('of a step', *_steps(evaluated, trained))
    validation = [Series(metric, epochs, [record[metric] for record in evaluated]) for metric in _CURVES]
    timed = [record for record in evaluated if 'train_seconds' in record]  # Older runs did not store it.
    seconds = [record['train_seconds'] for record in timed]
    marked = {'best': best['epoch'] if best else None}
    charts = [
        curves('Training loss', [*losses, steps], x='epochs', y='loss', whole_x=len(epochs) > 1),
        curves('Validation', validation, x='epochs', y='metric', whole_x=True, **marked),
        curves(
            'Validation against time', [Series(m, seconds, [record[m] for record in timed]) for m in _CURVES],
            x='seconds of training', y='metric',
            best=best['train_seconds'] if best and 'train_seconds' in best else None,
        ),
        curves(
            'Throughput', [Series('tokens/s', *_steps(evaluated, trained, 'tokens/s'))], x='epochs', y='tokens/s',
            from_zero=True,
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


def _setup(facts: Facts) -> Html:
    preset, differ = changed_settings(facts.config)
    parts = [table('The log', ['', ''], [[what, _words(value)] for what, value in facts.data])] if facts.data else []
    if preset:
        parts.append(tag('p', f'The settings are those of --preset={preset}' + (', but for these:' if differ else '.')))
    if differ:
        parts.append(table(
            f'Settings that differ from --preset={preset}', ['setting', 'here', preset],
            [[key, _value(own), _value(there)] for key, there, own in differ],
        ))
    rows = [[key, _value(s.value), _value(s.default), s.meaning] for key, s in described(facts.config).items()]
    parts.append(fill('details.html', summary='All settings', body=table(
        'All settings, their defaults and what they mean', ['setting', 'here', 'default', 'meaning'], [
            [*cells, _words(meaning)] for *cells, meaning in rows
        ],
    )))
    if facts.result:
        result = facts.result
        machine = [
            ['Machine', result.get('machine', 'not recorded')], ['Backend', result['backend']],
            ['Devices', result.get('devices', 1)], ['Processes', result.get('processes', 1)],
            *([what, version] for what, version in result.get('versions', {}).items()),
        ]
        parts.append(table('Where it ran', ['', ''], machine))
    return joined(parts)


def _cost(facts: Facts) -> Html:
    result = facts.result
    evaluating = sum(record.get('evaluation_seconds', 0.0) for record in facts.of_kind('valid'))
    rows = []
    if result:
        seconds = result['train_seconds']
        rows = [
            ['Training, without compilation and evaluation', _duration(seconds)],
            ['Tokens read', f'{result["tokens/s"] * seconds:,.0f}'],
            ['Tokens a second', f'{result["tokens/s"]:,.0f}'],
            ['Targets a second', f'{result["targets/s"]:,.0f}'],
            ['Places for tokens that are filled', f'{result["packing_fill"]:.2%}'],
            ['An epoch', _duration(seconds / max(result['epochs'], 1))],
            ['Most memory of the process', _memory(result.get('peak_memory_bytes'))],
            ['Waiting for checkpoints', _duration(result.get('checkpoint_wait_seconds', 0.0))],
        ]
    elif trained := facts.of_kind('train'):
        rows = [
            ['Tokens a second', f'{trained[-1]["tokens/s"]:,.0f}'],
            ['Targets a second', f'{trained[-1]["targets/s"]:,.0f}'],
            ['Places for tokens that are filled', f'{trained[-1]["packing_fill"]:.2%}'],
        ]
        if 'train_seconds' in trained[-1]:
            rows.insert(0, ['Training, without compilation and evaluation', _duration(trained[-1]['train_seconds'])])
    return table('Cost of the run', ['', ''], [*rows, ['Evaluation after epochs', _duration(evaluating)]])


def _users(judged: Judged, titles: Mapping[str, str]) -> Html:
    about = (
        'From the shortest to the longest history: its newest items, the item that was held out, and the best items for '
        'it' + (', without what the user has already seen.' if judged.seen_out else ', seen ones included.')
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


def _words(text: str) -> Html:
    """A cell that may break its lines."""
    return tag('span', text, class_='words')


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
