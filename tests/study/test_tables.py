"""Tables from a summary written by hand: what stands in a place, and how LaTeX is told of it."""
import pytest

from ssd4rec_jax.study.summary import COMPARED
from ssd4rec_jax.study.tables import latex, markdown

METRICS = ['HR@10', 'NDCG@10']


def row(name, value, seeds, apart):
    test = {metric: {'mean': value, 'sd': None, 'n': seeds} for metric in METRICS}
    return {
        'name': name, 'cells': [{'finished': True}] * seeds, 'test': {'out': test}, 'valid': None, 'cost': None,
        'difference': {'out': apart and dict.fromkeys(COMPARED, apart)},
    }


@pytest.fixture
def summary():
    apart = {'mean': 0.02, 'low': 0.01, 'high': 0.03, 'p': 0.00001, 'seeds': 1}
    return {
        'study': 'mine', 'dataset': 'tiny', 'about': 'Which?', 'finished': 5, 'cells': 5, 'machines': [],
        'metrics': METRICS, 'protocols': ['out'], 'against': {'out': 'peer'},
        'best': {'out': dict.fromkeys(METRICS, 'own')},
        'rows': [
            row('peer', 0.1, 2, None), row('own', 0.12, 3, apart),
            row('same', 0.1, 1, {**apart, 'mean': 0.0, 'p': None}),
        ],
    }


def test_a_difference_of_fewer_seeds_than_the_means_says_so(summary):
    lines = markdown(summary).splitlines()
    assert '| own | 3 | **0.1200** | **0.1200** | +0.0200 (1 of 3 seeds) | +0.0100 to +0.0300 | < .0001 |' in lines
    assert '| same | 1 | 0.1000 | 0.1000 | +0.0000 | +0.0100 to +0.0300 | – |' in lines
    assert '| peer | 2 | 0.1000 | 0.1000 | – | – | – |' in lines


def test_all_rows_that_are_the_best_are_bold(summary):
    summary['rows'].append(row('equal', 0.12, 1, None))
    lines = markdown(summary).splitlines()
    assert '| equal | 1 | **0.1200** | **0.1200** | – | – | – |' in lines
    assert '| own | 3 | **0.1200** | **0.1200** |' in markdown(summary)


def test_latex_reads_any_name_as_text(summary):
    summary['best']['out']['NDCG@10'] = summary['rows'][1]['name'] = r'50%_$x^2$~{a}\b#&'
    (line,) = (line for line in latex(summary).splitlines() if 'textbf{0.1200}' in line)
    assert line.startswith(
        r'50\%\_\$x\textasciicircum{}2\$\textasciitilde{}\{a\}\textbackslash{}b\#\& & 3 & 0.1200 & \textbf{0.1200} & '
    )
    assert line.endswith(r'& $<$ .0001 \\')
