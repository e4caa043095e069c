"""The first run on a GPU, with stages that stand in for its own, and the search for the smallest shape that fails."""
import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import first_gpu_run
from pallas_kernels.bench import agreement, around
from pallas_kernels.first_gpu_run import Stage, run_stages
from pallas_kernels.ssd.api import IMPLEMENTATIONS
from pallas_kernels.ssd.workloads import Workload


def python(name, code, seconds=300, **changes):
    return Stage(name, [sys.executable, '-c', code], seconds, **changes)


def test_without_a_gpu_it_refuses_in_a_sentence_and_makes_no_folder(monkeypatch, tmp_path):
    out = tmp_path / 'first'
    monkeypatch.setattr('sys.argv', ['first_gpu_run', f'--out={out}'])
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    with pytest.raises(SystemExit, match=r'^error: first_gpu_run needs a GPU, and JAX [\d.]+ finds cpu here$'):
        first_gpu_run.main()
    assert not out.exists()


def test_an_unknown_stage_is_named_with_the_known_ones(monkeypatch, tmp_path):
    monkeypatch.setattr('sys.argv', ['first_gpu_run', f'--out={tmp_path}', '--stages=device,agreemnt'])
    with pytest.raises(SystemExit, match='--stages=agreemnt is unknown: there are device, around, agreement_fused'):
        first_gpu_run.main()


def test_a_stage_that_fails_ends_no_other_and_every_record_is_kept(tmp_path, capsys):
    found = run_stages([
        python('good', 'print("working"); print("{\\"n\\": 3}")'),
        python('crash', 'raise SystemExit("error: no memory left")'),
        python('hangs', 'import time; time.sleep(60)', seconds=1),
        Stage('missing', ['no-such-program-here'], 5),
        python('silent', 'pass'),
        python('left', f'open({str(tmp_path / "left.json")!r}, "w").write("[1]")', output='left.json'),
        python('not needed', 'print(1)', needed=lambda found: 'crash' not in found),
    ], tmp_path)
    assert json.loads((tmp_path / 'first_gpu_run.json').read_text()) == found
    assert found['good']['result'] == {'n': 3} and found['left']['result'] == [1] and 'not needed' not in found
    why = {name: record.get('why', '') for name, record in found.items()}
    assert why['crash'] == 'exit code 1: error: no memory left'
    assert why['hangs'] == 'it took longer than 1 s' and why['missing'] == 'no-such-program-here is not installed'
    assert why['silent'].startswith('it left no result') and not found['silent']['ok']
    page = (tmp_path / 'page.txt').read_text()
    assert page == capsys.readouterr().out
    assert [line.split(':')[0] for line in page.splitlines()] == ['good', 'crash', 'hangs', 'missing', 'silent', 'left']
    assert (tmp_path / 'good.log').read_text().startswith('working')


def test_the_limits_fit_ten_minutes_each_25_together_and_12_the_most_valuable(tmp_path):
    stages = first_gpu_run.stages(tmp_path)
    seconds = [stage.seconds for stage in stages]
    assert max(seconds) <= 600 and sum(seconds) <= 25 * 60 and sum(seconds[:4]) <= 12 * 60
    assert [s.name for s in stages[:4]] == ['device', 'around', 'agreement_fused', 'step_pallas_gpu_fused']


def test_when_its_time_is_over_a_stage_is_stopped_and_those_after_it_are_left_out(tmp_path, monkeypatch):
    now = types.SimpleNamespace(monotonic=lambda: 9.0 * (tmp_path / 'page.txt').exists())  # when one has ended
    monkeypatch.setattr(first_gpu_run, 'time', now)
    found = run_stages([
        python('long', 'import time; time.sleep(60)'), python('late', 'print(2)')
    ], tmp_path, seconds=1.5)
    assert list(found) == ['long'] and found['long']['why'] == 'it took longer than 1 s'


def test_kernels_around_the_scan_are_told_apart_by_what_they_get_wrong(monkeypatch):
    def case(name, kernel):
        return around.Case(name, kernel, lambda x, w: x * w, (jnp.ones((2, 3), jnp.bfloat16), jnp.arange(3.0)))

    def refused(x, w):
        raise ValueError('no such\nshape')

    found = around.compare(iter([
        case('right', lambda x, w: x * w), case('wrong', lambda x, w: 1.1 * x * w), case('refused', refused)
    ]))
    right, wrong, refused = found['cases']
    assert right['agrees'] and set(right['errors']) == {'y 0', 'gradient 0', 'gradient 1'}
    assert set(right['seconds']) == {'kernel', 'xla'}
    assert not wrong['agrees'] and wrong['errors']['y 0'] == pytest.approx(0.1, abs=0.02)
    assert refused == {'name': 'refused', 'error': 'no such shape', 'agrees': False}
    assert first_gpu_run.page({'around': {'ok': True, 'seconds': 3, 'result': {'cases': [
        right | {'seconds': {'kernel': 1e-3, 'xla': 2e-3}}, refused
    ]}}}) == (
        'around: done (3 s)\n    1 of 2 cases agree\n    refused: no such shape\n'
        '    right: kernel 1.000 ms, xla 2.000 ms\n'
    )


def test_random_histories_fill_rows_and_their_mirror_undoes_itself():
    position, remaining, mirror = (np.asarray(a) for a in around.Histories.random(3, 200))
    at = np.arange(200)
    np.testing.assert_array_equal(np.take_along_axis(mirror, mirror, axis=1), np.broadcast_to(at, (3, 200)))
    np.testing.assert_array_equal(np.take_along_axis(position, mirror, axis=1), remaining)
    assert (position[:, 0] == 0).all() and (remaining[:, -1] == 0).all() and (position > 0).any()
    np.testing.assert_array_equal(position[:, 1:] == 0, remaining[:, :-1] == 0)


@pytest.mark.parametrize('failing', [None, {'shape': [1, 2], 'reverse': False}])
def test_the_sanitizer_runs_only_where_a_shape_disagrees(tmp_path, failing):
    (sanitizer,) = [stage for stage in first_gpu_run.stages(tmp_path) if stage.name == 'sanitizer']
    assert sanitizer.needed({'agreement': {'ok': True, 'result': {'smallest_failing': failing}}}) == bool(failing)
    assert not sanitizer.needed({'agreement': {'ok': False, 'why': 'it crashed'}})


@pytest.mark.parametrize('fused,timed', [
    ({'ok': True, 'result': {'cases': [{'agrees': True}]}}, True), ({'ok': False, 'why': 'it crashed'}, False),
    ({'ok': True, 'result': {'cases': [{'agrees': True}, {'agrees': False}]}}, False),
])
def test_the_fused_form_is_timed_only_where_it_agrees(tmp_path, fused, timed):
    (bench,) = [stage for stage in first_gpu_run.stages(tmp_path) if stage.name == 'bench_fused']
    assert bench.needed({'agreement_fused': fused}) is timed and bench.needed({}) is False


def test_an_implementation_that_agrees_has_no_failing_shape():
    found = agreement.compare('xla', (Workload(1, 40, 2, 16, 1, 16, 9),))
    assert found['smallest_failing'] is None
    assert [(case['reverse'], case['agrees']) for case in found['cases']] == [(False, True), (True, True)]
    assert set(found['cases'][0]['errors']) == {'y', 'x', 'dt', 'A', 'B', 'C', 'D'}


def test_a_value_that_is_not_finite_disagrees(monkeypatch):
    right = IMPLEMENTATIONS['xla']
    broken = right._replace(scan=lambda *a, **k: right.scan(*a, **k) * jnp.nan)
    monkeypatch.setitem(IMPLEMENTATIONS, 'broken', broken)
    assert agreement.disagreement(Workload(1, 4, 1, 16, 1, 16, 9), False, 'broken')['y'] == float('inf')


def test_a_failing_shape_is_made_smaller_while_it_fails(monkeypatch):
    """An implementation that is wrong for 40 tokens and more, from the left only, and that refuses eight heads."""
    def disagreement(w, reverse, implementation):
        if w.heads == 8:
            raise ValueError('eight heads\nare too many')
        return {'y': 0.5 if w.length >= 40 and not reverse else 0.001}

    monkeypatch.setattr(agreement, 'disagreement', disagreement)
    found = agreement.compare('any', (Workload(2, 90, 2, 32, 2, 16, 9), Workload(1, 300, 8, 32, 1, 32, 9)))
    assert [case['agrees'] for case in found['cases']] == [False, True, False, False]
    assert found['cases'][2]['error'] == 'eight heads are too many'
    assert found['smallest_failing'] == {'shape': [1, 45, 1, 16, 1, 16, 9], 'reverse': False}


def test_the_page_tells_what_disagrees_and_what_was_timed():
    errors = {'y': 0.5}
    text = first_gpu_run.page({
        'device': {'ok': True, 'seconds': 4.2, 'result': {
            'chip': 'NVIDIA H100', 'capability': '9.0', 'jax': '0.12.0',
            'ceilings': {'bytes': 3.0e12, 'flops': 7.9e14, 'exps': 4e12},
        }},
        'agreement': {'ok': True, 'seconds': 90, 'result': {
            'cases': [{'shape': [1, 64], 'reverse': True, 'errors': errors, 'agrees': False}, {'agrees': True}],
            'smallest_failing': {'shape': [1, 8], 'reverse': True},
        }},
        'bench': {'ok': True, 'seconds': 9, 'result': {'workloads': {'kuairand': {
            'xla': {'forward': {'seconds': 2e-3}}, 'mamba': {'unavailable': 'it is not installed'},
        }}}},
        'epoch': {'ok': False, 'seconds': 2, 'why': 'exit code 1: error: no memory'},
    })
    assert text == (
        'device: done (4 s)\n'
        '    NVIDIA H100, compute capability 9.0, JAX 0.12.0: 3,000 GB/s, 790 TFLOP/s, 4,000 G exp/s\n'
        'agreement: done (90 s)\n'
        '    1 of 2 cases agree\n'
        "    [1, 64], reverse True: {'y': 0.5}\n"
        "    the smallest shape that fails: {'shape': [1, 8], 'reverse': True}\n"
        'bench: done (9 s)\n'
        '    kuairand, xla: forward 2.000 ms\n'
        '    kuairand, mamba: it is not installed\n'
        'epoch: failed, exit code 1: error: no memory (2 s)\n'
    )
