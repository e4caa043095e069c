"""benchmarks/study/queue.sh with a stand-in for Python: what it runs, and how it ends."""
import os
import subprocess
from pathlib import Path

import pytest

from ssd4rec_jax.study.grid import read_study

ROOT = Path(__file__).parent.parent.parent
QUEUE = ROOT / 'benchmarks/study/queue.sh'


@pytest.fixture
def queue(tmp_path):
    """Runs the queue; returns its exit code and the flags of each study that it ran. code: what a study exits with."""
    stand_in, log = tmp_path / 'python', tmp_path / 'log'
    stand_in.write_text(f'#!/bin/bash\necho "$@" >> {log}\nexit ${{CODE:-0}}\n')
    stand_in.chmod(0o755)

    def run(*entries, code=0, **environment):
        log.write_text('')
        own = {'PATH': os.environ['PATH'], 'PYTHON': str(stand_in), 'CODE': str(code), 'MINUTES': '0', **environment}
        done = subprocess.run(['bash', QUEUE, *entries], env=own, capture_output=True, text=True, timeout=60)
        assert done.stderr == ''
        return done.returncode, [line.split()[2:] for line in log.read_text().splitlines()]

    return run


def value(flags, name):
    """What a flag was given last."""
    return [flag.partition('=')[2] for flag in flags if flag.startswith(f'--{name}=')][-1]


def test_every_entry_is_a_study_and_has_a_folder_of_its_own(queue):
    code, found = queue(KUAIRAND_LIKE='/kuairand', DATA='/logs')
    assert code == 0 and len({value(flags, 'output') for flags in found}) == len(found) > 20
    for flags in found:
        studies = ROOT / value(flags, 'studies') if '--studies=benchmarks/study/levers.toml' in flags else None
        assert read_study(value(flags, 'study'), *([studies] if studies else []))
        log = value(flags, 'output').split('/')[3]
        assert value(flags, 'dataset') == ('kuairand' if log == 'kuairand-like' else log)
        assert value(flags, 'data_dir') == ('/kuairand' if log == 'kuairand-like' else '/logs')
    there = {str(path.parent.relative_to(ROOT)) for path in (ROOT / 'benchmarks/results/study').glob('*/*/study.json')}
    assert there <= {value(flags, 'output') for flags in found}


def test_what_belongs_to_an_entry_alone(queue):
    _, found = queue('ml-100k/beta', 'ml-100k/efficiency', 'kuairand-like/recipe', SEEDS='2')
    beta, efficiency = found  # There is no log for the third.
    assert {'--set=train.objective=one_pass', '--set=model.bidirectional=last'} <= set(beta)
    assert (value(beta, 'seeds'), value(efficiency, 'seeds')) == ('2', '1')
    assert not any(flag.startswith('--data_dir') for flag in beta)


def test_what_a_search_found_is_taken(queue):
    _, (flags,) = queue('ml-100k/tuned')
    assert value(flags, 'study') == 'recipe'
    assert value(flags, 'tuned') == 'benchmarks/results/study/ml-100k/tuned/searched'
    assert {'transition', 'ssd4rec-best', 'gru4rec'} <= set(value(flags, 'rows').split(','))
    _, (flags,) = queue('other-log/tuned')
    assert value(flags, 'rows') == 'popularity,transition,item-knn'


def test_networks_without_settings_are_searched_first(queue):
    _, (search, recipe) = queue('other-log/tuned', MINUTES='5')
    assert value(search, 'tune') == '5' and 'ssd4rec-best' in value(search, 'rows')
    assert not any(flag.startswith('--tuned') for flag in search) and value(recipe, 'tuned')


def test_a_study_that_fails_does_not_end_the_queue_and_a_signal_does(queue):
    assert [queue('ml-100k/beta', 'ml-100k/layers', code=code)[0] for code in (1, 143)] == [1, 143]
    assert [len(queue('ml-100k/beta', 'ml-100k/layers', code=code)[1]) for code in (1, 143)] == [2, 1]
