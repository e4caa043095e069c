"""Fuzzing of configs, run folders and flags.

What is accepted equals a plain Python model, and each refusal is our own error.
"""
import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ssd4rec_jax.commands import recommend
from ssd4rec_jax.config.run import RunConfig, apply_overrides, from_dict, to_dict
from ssd4rec_jax.data.dataset import open_dataset
from ssd4rec_jax.errors import UserError
from ssd4rec_jax.files import parse_json
from ssd4rec_jax.rank.recommend import TopItems
from ssd4rec_jax.recommender import Recommender
from ssd4rec_jax.run.checkpoints import Checkpoints
from ssd4rec_jax.run.folder import RunFolder
from ssd4rec_jax.run.metrics_log import MetricsLog
from ssd4rec_jax.run.saved_run import load_run, read_config
from tests.faults.inside import TINY, call, write_log

BASE = to_dict(RunConfig('interactions'))
AT_LEAST_ONE = {
    'model': ('hidden_size', 'num_layers', 'd_state', 'd_conv', 'expand', 'headdim', 'ngroups'),
    'train': ('num_negatives', 'targets_per_step', 'max_epochs', 'log_every'),
    'data': ('min_interactions', 'split_last'),
}
NOT_NEGATIVE = {
    'data': ('max_history', 'rows_per_step', 'min_user_interactions', 'min_item_interactions'),
    'train': ('patience', 'seed', 'warmup_steps', 'decay_steps', 'clip_norm', 'weight_decay'),
}
ONE_OF = {
    ('model', 'backward_order'): ('reversed', 'aligned'),
    ('model', 'bidirectional'): ('all', 'last'),
    ('model', 'time'): ('none', 'dt', 'decay_and_dt'), ('model', 'dtype'): ('auto', 'float32', 'bfloat16', 'float64'),
    ('model', 'table_dtype'): ('float32', 'bfloat16'), ('data', 'timestamp_precision'): ('exact', 'float32'),
    ('train', 'objective'): ('auto', 'prefix', 'one_pass'), ('train', 'optimizer'): ('adam', 'adamw'),
    ('train', 'schedule'): ('constant', 'warmup_cosine'), ('train', 'loss'): ('auto', 'full', 'sampled'),
    ('model', 'name'): ('ssd4rec',), ('data', 'split'): ('leave_one_out', 'last_n', 'time', 'users', 'none'),
}
# Settings that later versions add may have rules of their own, which the model does not know: they stay as they are.
KNOWN = {
    'model': {
        *AT_LEAST_ONE['model'], 'name', 'beta', 'bidirectional', 'dropout_prob', 'norm_embedding', 'backward_order',
        'time', 'dtype', 'table_dtype', 'ssd_implementation',
    },
    'data': {
        *AT_LEAST_ONE['data'], *NOT_NEGATIVE['data'], 'mask_ratio', 'tokens_per_row', 'timestamp_precision', 'split',
        'split_valid_time', 'split_test_time', 'split_share',
    },
    'train': {
        *AT_LEAST_ONE['train'], *NOT_NEGATIVE['train'], 'objective', 'loss', 'table_learning_rate', 'learning_rate',
        'optimizer', 'schedule', 'checkpoint_seconds',
    },
}
KEYS = [(section, key) for section in KNOWN for key in sorted(KNOWN[section])]


def is_valid(config: Any) -> bool:
    """The plain model: whether a JSON value is a configuration."""
    if not isinstance(config, dict) or not isinstance(config.get('dataset'), str):
        return False
    if not all(isinstance(config.get(section), dict) for section in KNOWN) or config.get('loss', {}) != {}:
        return False
    full = {section: {**BASE[section], **config[section]} for section in KNOWN}
    for section in KNOWN:
        if set(full[section]) != set(BASE[section]):
            return False
        for key, value in full[section].items():
            kind = type(BASE[section][key])
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind:
                return False
    model, data, train = full['model'], full['data'], full['train']
    if any(full[s][key] < 1 for s, keys in AT_LEAST_ONE.items() for key in keys):
        return False
    if any(full[s][key] < 0 for s, keys in NOT_NEGATIVE.items() for key in keys):
        return False
    if any(full[s][key] not in among for (s, key), among in ONE_OF.items()):
        return False
    inner = model['expand'] * model['hidden_size']
    return (
        inner % model['headdim'] == 0 and (inner // model['headdim']) % model['ngroups'] == 0
        and 0 <= model['dropout_prob'] < 1 and 0 <= data['mask_ratio'] < 1
        and data['tokens_per_row'] >= 16 and 0 < data['split_share'] < 0.5
        and min(train[key] for key in ('learning_rate', 'table_learning_rate')) > 0 <= train['checkpoint_seconds']
        and not (train['weight_decay'] and train['optimizer'] == 'adam')
        and not (train['schedule'] == 'warmup_cosine' and train['decay_steps'] <= train['warmup_steps'])
    )


SCALARS = st.one_of(
    st.integers(-3, 40), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none(),
    st.sampled_from(sorted({name for names in ONE_OF.values() for name in names})), st.text(max_size=5),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def stored_configs(draw: Any) -> Any:
    """A stored config with some values, keys or sections changed."""
    config = json.loads(json.dumps(BASE))
    for _ in range(draw(st.integers(0, 4))):
        section, key = draw(st.sampled_from(KEYS))
        change = draw(st.sampled_from(('value', 'value', 'value', 'missing', 'new', 'section', 'top')))
        if not isinstance(config.get(section), dict):
            continue
        if change == 'value':
            config[section][key] = draw(SCALARS if draw(st.booleans()) else ANYTHING)
        elif change == 'missing':
            config[section].pop(key, None)
        elif change == 'new':
            config[section][draw(st.text(max_size=5))] = draw(SCALARS)
        elif change == 'section':
            config[section] = draw(ANYTHING)
        else:
            config[draw(st.sampled_from(['dataset', 'loss', section]))] = draw(ANYTHING)
    return config


@st.composite
def overrides(draw: Any) -> list[str]:
    """Texts as --set takes them."""
    texts = st.one_of(
        SCALARS.map(str),
        st.sampled_from(['true', 'false', 'TRUE', '1_0', ' 5 ', '1e3', 'nan', 'inf', '-inf', '0x10', '']),
        st.text(max_size=6),
    )
    known = draw(st.lists(st.tuples(st.sampled_from(KEYS), texts), max_size=3))
    odd = draw(st.lists(st.text(max_size=12), max_size=1))
    return [f'{section}.{key}={text}' for (section, key), text in known] + odd


def expected_overrides(changes: list[str]) -> dict | None:
    """The plain model of apply_overrides: the configuration as a dict, None where it is refused."""
    config = json.loads(json.dumps(BASE))
    for change in changes:
        found = re.fullmatch(r'(model|data|train)\.([a-z_]+)=(.*)', change, re.DOTALL)
        if not found or found[2] not in BASE[found[1]]:
            return None
        section, key, text = found.groups()
        kind = type(BASE[section][key])
        try:
            value = {'true': True, 'false': False}[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            return None
        if kind is float and not math.isfinite(value):
            return None
        config[section][key] = value
    return config if is_valid(config) else None


class Fuzz:
    """Counts of fuzzed inputs by kind; `problems` lists what must not be."""

    def __init__(self, root: Path):
        self.root = root
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []

    def _run(
        self, name: str, count: int, strategy: st.SearchStrategy, check: Callable[[Any], str | None], start: int
    ) -> None:
        @seed(start)
        @settings(
            max_examples=count, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def one(value: Any) -> None:
            self.counts[f'inputs of {name}'] += 1
            try:
                problem = check(value)
            except Exception as error:  # anything else than our own error, which the checks expect
                problem = f'traceback: {type(error).__name__}: {error}'
            if problem and len(self.problems) < 50:
                self.problems.append(f'{name}: {value!r}: {problem}')

        one()

    def configs(self, count: int, start: int = 0) -> None:
        """Stored configs and overrides against the plain model."""

        def check_stored(config: Any) -> str | None:
            try:
                accepted = from_dict(config)
            except UserError:
                return 'refused' if is_valid(config) else None
            if not is_valid(config):
                return 'accepted'
            expected = {**{s: {**BASE[s], **config[s]} for s in KNOWN}, 'dataset': config['dataset'], 'loss': {}}
            return None if to_dict(accepted) == expected else 'another config'

        def check_overrides(changes: list[str]) -> str | None:
            expected = expected_overrides(changes)
            try:
                accepted = to_dict(apply_overrides(RunConfig('interactions'), changes))
            except UserError:
                return 'refused' if expected else None
            return None if accepted == expected else f'gives {accepted}'

        self._run('stored configs', count // 2, stored_configs(), check_stored, start)
        self._run('overrides', count - count // 2, overrides(), check_overrides, start)

    def folders(self, count: int, start: int = 0) -> None:
        """The small files of a run and of prepared data with changed bytes: noticed, or the same content."""
        folder = self.root / 'folder'
        if not folder.exists():
            folder.mkdir()
            write_log(folder / 'log.csv')
            done = call('train', *TINY, folder=folder)
            assert done.code == 0, done
        run = RunFolder(folder / 'run')
        steps = Checkpoints(run.checkpoints).steps()
        written = read_config(run)
        assert written is not None
        data = written[1]
        meta = run.checkpoints / str(steps[-1]) / 'meta.json'
        older = Checkpoints(run.checkpoints).meta(steps[-2])
        sound = {path: path.read_bytes() for path in (run.config, run.result, run.metrics, meta, data / 'dataset.json')}
        result, newest, description = run.read_result(), Checkpoints(run.checkpoints).newest_meta(), open_dataset(data)
        assert result and newest and description

        def edited(path: Path) -> st.SearchStrategy:
            size = len(sound[path])
            bytes_ = st.one_of(
                st.binary(max_size=4),
                st.sampled_from([b'', b'0', b'"', b'{', b'}', b'[]', b'null', b'1e999', b'\n', b'NaN']),
            )
            edit = st.tuples(st.integers(0, size), st.integers(0, 30), bytes_)
            return st.tuples(st.just(path), st.lists(edit, min_size=1, max_size=3))

        def check(changed: tuple[Path, list[tuple[int, int, bytes]]]) -> str | None:
            path, edits = changed
            content = sound[path]
            for at, length, new in edits:
                content = content[:at] + new + content[at + length:]
            path.write_bytes(content)
            try:
                return _differs(path)
            except UserError as error:
                return None if str(error) else 'an error without a sentence'
            finally:
                path.write_bytes(sound[path])
                for aside in path.parent.glob('*.damaged*'):
                    aside.unlink()

        def _differs(path: Path) -> str | None:
            if path == run.result:
                found = run.read_result()
                return None if found in (None, result) else f'believed: {found}'
            if path == meta:
                found = Checkpoints(run.checkpoints).newest_meta()
                return None if found in (newest, older) else f'believed: {found}'
            if path == data / 'dataset.json':
                opened = open_dataset(data)
                if opened is None:
                    return None
                same = dataclasses.asdict(opened).keys() == dataclasses.asdict(description).keys() and (
                    opened.name, opened.fingerprint) == (description.name, description.fingerprint)
                return None if same and np.array_equal(opened.items, description.items) else 'believed'
            if path == run.metrics:
                records = MetricsLog(path).read()
                expected = [_record(line) for line in path.read_bytes().split(b'\n')[:-1]]
                return None if records == [record for record in expected if record is not None] else 'other records'
            config = read_config(run)
            if config is None:
                return None
            settings_ = {k: v for k, v in json.loads(path.read_bytes()).items() if k != 'prepared'}
            return None if is_valid(settings_) else 'accepted'

        for number, path in enumerate(sound):
            self._run(f'{path.name}', count // len(sound), edited(path), check, start + number)

    def flags(self, count: int, start: int = 0) -> None:
        """recommend with flags drawn at random, against a ranking in plain Python."""
        folder = self.root / 'flags'
        if not folder.exists():
            folder.mkdir()
            write_log(folder / 'log.csv')
            assert call('train', *TINY, folder=folder).code == 0
        saved = load_run(folder / 'run')
        top = TopItems(saved.network, saved.mesh, saved.params)
        offsets = saved.dataset.offsets
        users = {
            str(u): saved.dataset.items[offsets[k]:offsets[k + 1]]
            for k, u in enumerate(saved.dataset.user_ids.tolist())
        }
        items = {str(i): k + 1 for k, i in enumerate(saved.dataset.item_ids.tolist())}
        names = {number: item for item, number in items.items()}
        known: dict[tuple[int, ...], dict[int, float]] = {}

        def scores(history: list[int]) -> dict[int, float]:
            """Every item's score."""
            if tuple(history) not in known:
                ranked, values = top([np.asarray(history)], k=len(items))
                known[tuple(history)] = dict(zip(map(int, ranked[0]), map(float, values[0]), strict=True))
            return known[tuple(history)]

        ids = st.lists(
            st.sampled_from([*users, *users, *users, '', 'x', '999', ' 1 ', '-1', '=2', '\t', 'é']), max_size=4
        )
        drawn = st.fixed_dictionaries({}, optional={
            'users': ids, 'k': st.one_of(st.integers(-2, 30), st.sampled_from(['', 'x', '1.5', 10**9, 10**30])),
            'exclude_seen': st.booleans(), 'model_shards': st.sampled_from([1, 1, 1, 0, -1, 'a']),
            'history': st.lists(st.sampled_from([*items]), max_size=2),
            'workdir': st.sampled_from(['run', 'run', 'run', 'no', '']),
        })

        def expected(drawn: dict[str, Any]) -> tuple[bool, list[list[str]]] | None:
            """(whether all ids are known, the rows), None where the flags are refused."""
            k = drawn.get('k', 10)
            if drawn.get('workdir', 'run') != 'run' or ('users' in drawn) == ('history' in drawn):
                return None
            kind, known_ids = ('users', users) if 'users' in drawn else ('history', items)
            given_ids = [name.strip() for name in drawn[kind] if name.strip()]
            if not given_ids or drawn.get('model_shards', 1) != 1 or type(k) is not int or k < 1:
                return None
            here = [name for name in given_ids if name in known_ids]
            asked = [(u, list(map(int, users[u]))) for u in here]
            if kind == 'history':
                asked = [('history', [items[i] for i in here])]
            rows = []
            for name, history in asked:
                values = scores(history)
                left = [item for item in names if not (drawn.get('exclude_seen') and item in history)]
                left.sort(key=lambda item: (-values[item], item))
                rows += [[name, str(rank), names[item]] for rank, item in enumerate(left[:k], start=1)]
            return here == given_ids, rows

        def check(drawn: dict[str, Any]) -> str | None:
            arguments = ['--workdir=run'] if 'workdir' not in drawn else []
            for name, value in drawn.items():
                if isinstance(value, bool):
                    arguments.append(f'--{"" if value else "no"}{name}')
                else:
                    arguments.append(f'--{name}={",".join(value) if isinstance(value, list) else value}')
            done = call('recommend', *arguments, folder=folder)
            if done.is_traceback:
                return f'traceback: {done.err[-600:]}'
            wanted = expected(drawn)
            if wanted is None:
                return None if done.code in (1, 2) else f'accepted: {done.out[:200]}'
            all_known, rows = wanted
            if done.code != (0 if all_known else recommend.UNKNOWN_IDS):
                return f'code {done.code}: {done.err[-300:]}'
            found = [line.split('\t')[:3] for line in done.out.splitlines()]
            return None if found == rows else f'{found} instead of {rows}'

        once = Recommender.load(folder / 'run')

        class LoadsOnce(Recommender):
            """Loads the run that most draws name once for all of them."""

            @classmethod
            def load(cls, path: str | Path, *, model_shards: int = 1) -> Recommender:
                if path == 'run' and model_shards == 1:
                    return once
                return Recommender.load(folder / path, model_shards=model_shards)

        recommend.Recommender = LoadsOnce  # type: ignore[misc]
        try:
            self._run('flags of recommend', count, drawn, check, start)
        finally:
            recommend.Recommender = Recommender  # type: ignore[misc]


def _record(line: bytes) -> dict | None:
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if type(record.get('step')) in (int, bool) and isinstance(record.get('kind', ''), str) else None
