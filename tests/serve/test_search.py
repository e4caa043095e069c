"""The search for items and users."""
from hypothesis import given
from hypothesis import strategies as st

from ssd4rec_jax.serve.search import Search


@given(texts=st.lists(st.text('aB \n', max_size=5), max_size=12), part=st.text('aB \n', max_size=3), data=st.data())
def test_a_search_finds_what_a_loop_finds(texts, part, data):
    order = data.draw(st.permutations(range(len(texts))))
    limit = data.draw(st.integers(1, 5))
    plain, wanted = [text.replace('\n', ' ').lower() for text in texts], part.replace('\n', ' ').strip().lower()
    holding = [n for n in order if wanted in plain[n]]
    expected = sorted(holding, key=lambda n: not plain[n].startswith(wanted))  # stable: by importance otherwise
    assert Search(texts, order).find(part, limit) == expected[:limit]
