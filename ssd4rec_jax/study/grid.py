"""What a study consists of: rows of its tables, and cells, each of them one training or one ranking that counts."""
import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ssd4rec_jax.config.plugs import nearest
from ssd4rec_jax.config.run import RunConfig, apply_overrides, flat
from ssd4rec_jax.config.toml_file import read_toml
from ssd4rec_jax.errors import ConfigError
from ssd4rec_jax.peers import NETWORKS, published
from ssd4rec_jax.rank.baselines import BASELINES
from ssd4rec_jax.tune.space import override

DEFAULT = Path(__file__).with_name('studies.toml')
_STUDY_KEYS = {'about': str, 'x': str, 'also': str, 'values': list, 'against': str, 'rows': list}
_ROW_KEYS = {'name': str, 'preset': str, 'network': str, 'counted': str, 'set': dict}
_NAME = re.compile(r'[\w.+=-]+')
_EVERY = '*'
# The settings that decide which interactions are kept, in which order, and which of them are tested.
_OF_THE_TEST = (
    'timestamp_precision', 'user_core', 'item_core', 'split', 'split_last', 'split_valid_time', 'split_test_time',
    'split_share',
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a study's tables: one configuration, trained with several seeds.

    name: its own; series: the rows of one line in a figure share it. preset: the settings to begin with. network: a
    peer, whose published settings come next, of another preset than the published one those of the network alone; ''
    is SSD4Rec. counted: a ranking of ssd4rec_jax.rank.baselines, which
    needs no training; '' for a network. own: overrides that come after those of the command line; where_known: the
    same, for networks that have such a setting. x: the value of the setting that the study varies; None where it varies
    none.
    """

    name: str
    series: str
    preset: str = 'published'
    network: str = ''
    counted: str = ''
    own: tuple[str, ...] = ()
    where_known: tuple[str, ...] = ()
    x: Any = None

    @property
    def is_peer(self) -> bool:
        """Whether it is something else than SSD4Rec."""
        return bool(self.network or self.counted)


class Study(NamedTuple):
    """about: what it asks. x: the setting that it varies, '' for none. against: the name of the row with which all
    others are compared; '' compares with the best peer."""

    name: str
    about: str
    x: str
    against: str
    rows: list[Row]


class Cell(NamedTuple):
    """One run of a row. seed: None where nothing is drawn. config: all its settings; of a ranking that counts, those
    that prepare the log."""

    row: Row
    seed: int | None
    config: RunConfig

    @property
    def name(self) -> str:
        """The name of its files."""
        return self.row.name if self.seed is None else f'{self.row.name}-{self.seed}'


def read_study(name: str, path: Path = DEFAULT) -> Study:
    """The study that a file of studies calls by this name; ConfigError says what is wrong with either."""
    studies = read_toml(path, 'studies')
    if name not in studies:
        raise ConfigError(f'--study={name} is unknown{nearest(name, studies)} Known: {", ".join(studies)}')
    where = f'--studies={path}: [{name}]'
    found = _checked(where, studies[name], _STUDY_KEYS)
    x, values = found.get('x', ''), found.get('values', [None])
    if bool(x) != ('values' in found):
        raise ConfigError(f'{where} needs both x, a setting, and values, a list of what it takes, or neither')
    rows = [
        at_x for row in found.get('rows', []) for each in _rows(f'{where} rows', row) for value in values
        for at_x in [_at(each, x, found.get('also', ''), value)]
    ]
    names = [row.name for row in rows]
    for one in names:
        if not _NAME.fullmatch(one):
            raise ConfigError(f'{where}: name={one!r} must consist of letters, digits and . + = _ -')
    if not rows or (twice := sorted({n for n in names if names.count(n) > 1})):
        raise ConfigError(f'{where} has {f"two rows of the name {twice[0]}" if rows else "no rows"}')
    against = found.get('against', '')
    if against and against not in names:
        raise ConfigError(f'{where} against={against!r} names none of its rows{nearest(against, names)}')
    return Study(name, found.get('about', ''), x, against, rows)


def chosen(study: Study, names: list[str]) -> list[Row]:
    """The rows of these names, all where none is given; ConfigError names one that there is not."""
    known = {row.name for row in study.rows} | {row.series for row in study.rows}
    for name in names:
        if name not in known:
            raise ConfigError(
                f'--rows={name} is no row of the study {study.name}{nearest(name, known)} Known: '
                f'{", ".join(dict.fromkeys(row.name for row in study.rows))}'
            )
    return [row for row in study.rows if not names or {row.name, row.series} & set(names)]


def cells(
    rows: list[Row], seeds: int, preset: Callable[[str], RunConfig], with_settings: Callable[[RunConfig], RunConfig],
    found: Callable[[str], list[str]] = lambda row: [],
) -> list[Cell]:
    """Each row with each of so many seeds: the one of the settings and those that follow it.

    All rows come with the first seed, then all with the next, so that a grid that is cut short has whole columns.
    preset: the configuration of a preset. with_settings: adds what the command line says for all rows. found: overrides
    that a search found for the network of a row, which come before those.
    """
    configs = {row.name: _config(row, preset, with_settings, found) for row in rows}
    _check_same_test(configs)
    grid = []
    for number in range(seeds):
        for row in rows:
            config = configs[row.name]
            if row.counted:
                grid += [Cell(row, None, config)] if number == 0 else []
                continue
            seed = config.train.seed + number
            grid.append(
                Cell(row, seed, dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed)))
            )
    return grid


def _check_same_test(configs: dict[str, RunConfig]) -> None:
    """ConfigError where two rows would not rank the same items of the same users, so that nothing can be compared."""
    first, *others = configs
    for name in others:
        for key in _OF_THE_TEST:
            a, b = (getattr(configs[row].data, key) for row in (first, name))
            if a != b:
                raise ConfigError(f'the rows {first} and {name} test other items: data.{key} is {a!r} and {b!r}')


def distinct(grid: list[Cell], first: str = '') -> tuple[list[Cell], dict[str, str]]:
    """The cells without the rows that have all settings of another one on this log, and {such a row: the other one}.

    first: a row that stays where others equal it; of the rest, the row that comes first stays.
    """
    kept: list[Row] = []
    same: dict[str, str] = {}
    settings = {cell.row.name: (cell.row.counted, cell.config) for cell in reversed(grid)}  # with the first seed
    for row in sorted(dict.fromkeys(cell.row for cell in grid), key=lambda row: row.name != first):
        other = next((one for one in kept if settings[one.name] == settings[row.name]), None)
        if other:
            same[row.name] = other.name
        else:
            kept.append(row)
    return [cell for cell in grid if cell.row.name not in same], same


def _config(
    row: Row, preset: Callable[[str], RunConfig], with_settings: Callable[[RunConfig], RunConfig],
    found: Callable[[str], list[str]],
) -> RunConfig:
    config = preset(row.preset)
    if row.network:
        settings = published(row.network, config.dataset)
        if row.preset != 'published':  # which says how to train
            settings = {key: value for key, value in settings.items() if key.startswith('model.')}
        config = apply_overrides(config, [override(*setting) for setting in settings.items()])
    if not row.counted:
        config = apply_overrides(config, found(row.name))
    config = with_settings(config)
    return apply_overrides(config, [*row.own, *known(list(row.where_known), config)], source=f'row {row.name}: ')


def _rows(where: str, written: Any) -> list[Row]:
    """The rows that one entry of a file stands for."""
    row = _checked(where, written, _ROW_KEYS)
    own = tuple(override(*setting) for setting in row.get('set', {}).items())
    found = []
    kinds: dict[str, Collection[str]] = {'network': NETWORKS, 'counted': BASELINES}
    if kinds.keys() <= row.keys():
        raise ConfigError(f'{where}: network={row["network"]!r} and counted={row["counted"]!r} are two rows')
    for kind, there in kinds.items():
        if kind not in row:
            continue
        for name in there if row[kind] == _EVERY else [row[kind]]:
            if name not in there:
                raise ConfigError(
                    f'{where}: there is no {kind}={name!r}{nearest(name, there)} Known: {", ".join(there)}'
                )
            label = name if row[kind] == _EVERY else row.get('name', name)
            peer = ('', name) if kind == 'counted' else (name, '')
            preset = row.get('preset', 'published')
            if kind == 'network' and preset != 'published' and _trained_its_own_way(name):
                raise ConfigError(f'{where}: {name} lives by its own training, which preset={preset!r} replaces')
            found.append(Row(label, label, preset=preset, network=peer[0], counted=peer[1], own=own))
        return found
    name = row.get('name', '')
    return [Row(name, name, preset=row.get('preset', 'published'), own=own)]


def _trained_its_own_way(peer: str) -> bool:
    training = published(peer)
    return training['train.loss'] != 'full' or training['train.objective'] == 'cloze'


def _at(row: Row, x: str, also: str, value: Any) -> Row:
    if not x:
        return row
    where_known = (override(also, value),) if also else ()
    written = override(x.rpartition('.')[2], value)
    return dataclasses.replace(
        row, name=f'{row.series}_{written}', own=(*row.own, override(x, value)), where_known=where_known, x=value
    )


def _checked(where: str, found: Any, kinds: Mapping[str, type]) -> dict[str, Any]:
    """A table of a file whose keys are of these kinds."""
    if not isinstance(found, dict):
        raise ConfigError(f'{where} is {found!r}: write a table')
    for key, value in found.items():
        if key not in kinds:
            raise ConfigError(f'{where} has no key {key!r}{nearest(key, kinds)} Known: {", ".join(kinds)}')
        if not isinstance(value, kinds[key]):
            raise ConfigError(f'{where} {key} is {value!r}: it takes a {kinds[key].__name__}')
    return found


def known(overrides: list[str], config: RunConfig) -> list[str]:
    """The overrides whose setting the configuration has."""
    return [one for one in overrides if one.partition('=')[0] in flat(config)]
