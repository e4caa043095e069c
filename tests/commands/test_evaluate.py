"""Evaluating from the command line: the same figures as the library's and as plain NumPy's, in each form."""
import dataclasses
import json

import numpy as np
import polars as pl
import pytest

from ssd4rec_jax.commands import evaluate
from ssd4rec_jax.config.run import RunConfig
from ssd4rec_jax.model.network import init_network
from ssd4rec_jax.recommender import Recommender
from ssd4rec_jax.run.model_folder import save_model
from tests.commands.in_process import call
from tests.tiny import DATA, MODEL, TRAIN, history, tiny_dataset

ITEMS, USERS = 30, 60


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A folder with a model that is not trained."""
    path = tmp_path_factory.mktemp('model') / 'model'
    network, params = init_network(MODEL, ITEMS, seed=1)
    config = RunConfig('interactions', MODEL, DATA, TRAIN)
    save_model(path, config, tiny_dataset(), network.whole(params), step=1, best_epoch=1)
    return path


def ask(model, *flags):
    done = call(evaluate.main, f'--workdir={model}', *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def users(model, tmp_path_factory):
    path = tmp_path_factory.mktemp('users') / 'ranks.parquet'
    report = json.loads(ask(model, '--k=5,20', '--seen=both', '--by=history_length,item_popularity', '--json',
                            f'--per_user={path}'))
    return report, pl.read_parquet(path)


def test_the_line_has_the_usual_metrics(model, tmp_path):
    line = json.loads(ask(model))
    metrics = [f'{m}@{k}' for k in (10, 20) for m in ('HR', 'NDCG', 'MRR')]
    assert list(line) == ['dataset', 'split', 'best_epoch', *metrics]
    assert json.loads(ask(model, f'--per_user={tmp_path}/ranks.csv')) == pytest.approx(line)
    rank = pl.read_csv(tmp_path / 'ranks.csv')['rank'].to_numpy()
    assert line['HR@10'] == np.mean(rank <= 10)
    assert line['MRR@20'] == pytest.approx(np.mean(np.where(rank <= 20, 1 / rank, 0)))


def test_the_ranks_of_users_are_those_that_the_metrics_count(users):
    report, ranks = users
    dataset = tiny_dataset()
    assert ranks['user'].to_list() == list(range(100, 100 + USERS))
    assert ranks['item'].to_list() == [1000 + history(dataset, u)[-1] for u in range(USERS)]
    assert ranks['history_length'].to_list() == [len(history(dataset, u, 1)) for u in range(USERS)]
    training = np.concatenate([history(dataset, u, 2) for u in range(USERS)])
    assert ranks['item_popularity'].to_list() == [int(np.sum(training + 1000 == item)) for item in ranks['item']]
    seen = [history(dataset, u)[-1] in history(dataset, u, 1) for u in range(USERS)]
    assert ranks['rank_seen_out'].is_null().to_list() == seen and any(seen)
    assert report['seen_out']['seen_targets'] == np.mean(seen) and report['seen_in']['seen_targets'] == 0
    # What is left out stands before the target or not at all.
    assert (ranks['rank_seen_out'] <= ranks['rank']).sum() == USERS - sum(seen)
    for key, column in (('seen_in', 'rank'), ('seen_out', 'rank_seen_out')):
        found = {row['metric']: row for row in report[key]['metrics']}
        assert list(found) == [f'{m}@{k}' for k in (5, 20) for m in ('HR', 'NDCG', 'MRR')]
        rank = ranks[column].fill_null(10**6).to_numpy()
        assert found['HR@5']['value'] == pytest.approx(np.mean(rank <= 5))
        assert found['HR@5']['low'] <= found['HR@5']['value'] <= found['HR@5']['high']


def test_groups_of_users_partition_them(users):
    report, ranks = users
    rows = [row for row in report['seen_in']['by_history_length'] if row['metric'] == 'HR@20']
    assert sum(row['users'] for row in rows) == USERS
    for row in rows:
        own = ranks.filter(pl.col('history_length').is_between(row['from'], row['to']))
        assert (row['users'], row['value']) == (len(own), pytest.approx((own['rank'] <= 20).mean()))


def test_recall_and_map_where_users_have_several_held_out_items(model, tmp_path):
    """Of the list that is shown before the first of them, against a loop over users."""
    config = RunConfig('interactions', MODEL, dataclasses.replace(DATA, split='last_n', split_last=2), TRAIN)
    network, params = init_network(MODEL, ITEMS, seed=1)
    save_model(tmp_path / 'm', config, tiny_dataset(), network.whole(params), step=1, best_epoch=1)
    rec, dataset = Recommender.load(tmp_path / 'm'), tiny_dataset()
    shown = rec.recommend(histories=[history(dataset, u, 2) + 1000 for u in range(USERS)], k=6)
    recalls, precisions = [], []
    for u in range(USERS):
        items, own = set((history(dataset, u)[-2:] + 1000).tolist()), shown.filter(user=u)['item'].to_list()
        hits = [item in items for item in own]
        recalls.append(sum(hits) / len(items))
        precisions.append(sum(sum(hits[:n + 1]) / (n + 1) for n in range(6) if hits[n]) / len(items))
    found = json.loads(ask(tmp_path / 'm', '--k=6', '--json'))['seen_in']['metrics']
    values = {row['metric']: row['value'] for row in found}
    assert (values['recall@6'], values['MAP@6']) == pytest.approx((np.mean(recalls), np.mean(precisions)))


def test_lists_without_seen_items_hold_none(users):
    report, _ = users
    for key in ('seen_in', 'seen_out'):
        lists = report[key]['lists']
        assert 0 < lists['coverage@5'] <= lists['coverage@20'] <= 1 and 0 <= lists['gini@20'] < 1
    assert report['seen_in']['lists'] != report['seen_out']['lists']


def test_tables_fit_80_columns(model, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    shown = ask(model, '--k=5,10,20', '--seen=both', '--by=history_length,item_popularity')
    assert max(map(len, shown.splitlines())) <= 80
    for text in (
        'HR@5', '95% interval', 'coverage', 'gini', 'novelty', 'tail', 'By history_length:', 'count as not found',
    ):
        assert text in shown


@pytest.mark.parametrize('flags, text', [
    (['--k=5,x'], '--k=5,x: write whole numbers'), (['--k=31'], 'beyond the catalogue of 30 items'),
    (['--by=age'], '--by=age is unknown'), (['--per_user=ranks.txt'], 'none of .parquet, .csv, .jsonl'),
])
def test_what_cannot_be_evaluated_is_refused(model, flags, text):
    done = call(evaluate.main, f'--workdir={model}', *flags)
    assert done.returncode == 1 and text in done.stderr
