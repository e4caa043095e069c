"""Titles, and the search for items and users."""
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd4rec_jax.errors import DataError
from ssd4rec_jax.serve.search import Search
from ssd4rec_jax.serve.titles import read_titles


def test_titles_of_movielens_and_of_tables(tmp_path):
    (tmp_path / 'u.item').write_bytes('1|Le Procès (1962)|01-Jan-1962||\n2|Heat|x\n'.encode('latin-1'))
    (tmp_path / 'movies.dat').write_text('1::Toy Story (1995)::Animation\n')
    (tmp_path / 'movies.csv').write_text('movieId,title,genres\n1,"Heat, the film",x\n2,,x\n')
    pl.DataFrame({'asin': ['B1'], 'name': ['Soap'], 'price': [1.5]}).write_parquet(tmp_path / 'meta.parquet')
    assert read_titles(tmp_path / 'u.item') == {'1': 'Le Procès (1962)', '2': 'Heat'}
    assert read_titles(tmp_path / 'movies.dat') == {'1': 'Toy Story (1995)'}
    assert read_titles(tmp_path / 'movies.csv') == {'1': 'Heat, the film'}
    assert read_titles(tmp_path / 'meta.parquet') == {'B1': 'Soap'}


def test_titles_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r'--titles=.*none.csv cannot be read'):
        read_titles(tmp_path / 'none.csv')
    (tmp_path / 'a.csv').write_text('item_id,price\n1,2\n')
    with pytest.raises(DataError, match='has the columns item_id, price: one has to be named item_id and one title'):
        read_titles(tmp_path / 'a.csv')


@given(texts=st.lists(st.text('aB \n', max_size=5), max_size=12), part=st.text('aB \n', max_size=3), data=st.data())
def test_a_search_finds_what_a_loop_finds(texts, part, data):
    order = data.draw(st.permutations(range(len(texts))))
    limit = data.draw(st.integers(1, 5))
    plain, wanted = [text.replace('\n', ' ').lower() for text in texts], part.replace('\n', ' ').strip().lower()
    holding = [n for n in order if wanted in plain[n]]
    expected = sorted(holding, key=lambda n: not plain[n].startswith(wanted))  # stable: by importance otherwise
    assert Search(texts, order).find(part, limit) == expected[:limit]
