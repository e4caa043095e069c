"""The benchmark of preparing KuaiRand-27K, on a small log."""
from experiments.bench import large_log
from ssd4rec_jax.config.data import DataConfig
from ssd4rec_jax.data.sequences import build_sequences
from ssd4rec_jax.data.sources import find_source


def test_the_log_has_the_rows_asked_for_in_the_official_files(tmp_path, monkeypatch):
    monkeypatch.setattr(large_log, 'AT_ONCE', 700)
    size = large_log.write_log(tmp_path, 10_003)
    log = find_source('kuairand-27k', tmp_path).read()
    assert len(log) == 10_003 and size == sum(file.stat().st_size for file in tmp_path.iterdir())
    dataset = build_sequences(log, DataConfig(), name='x')
    assert 0.5 < dataset.num_interactions / 10_003 < 1  # The core removes some interactions and keeps others.


def test_the_plan_for_the_true_size_lies_on_the_line_through_both_logs(monkeypatch):
    peaks = {2000: 330e6, 4000: 390e6}
    monkeypatch.setattr(large_log, '_prepare', lambda rows: {'rows': rows, 'peak_bytes': peaks[rows]})
    figures = large_log.measure_preparation(4000)
    assert figures['bytes_a_row'] == 30_000
    assert figures['planned_bytes'] == 390e6 + 30_000 * (322_278_385 - 4000)
