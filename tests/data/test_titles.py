"""Titles of items, from the files of MovieLens."""
import zipfile

import polars as pl
import pytest

from ssd4rec_jax.data.titles import titles_beside, titles_of
from ssd4rec_jax.errors import DataError

U_ITEM = '1|Amélie (2001)|01-Jan-2001||http://x|0|1\n2|A | B|\nbroken\n3||\n'
MOVIES_DAT = '1::Amélie (2001)::Comedy\n2::2001: A Space Odyssey (1968)::Drama\n'
MOVIES_CSV = 'movieId,title,genres\n1,"Amélie, le film (2001)",Comedy\n2,"The ""Best""",Drama\n'


@pytest.mark.parametrize('name, text, encoding, expected', [
    ('u.item', U_ITEM, 'latin-1', {'1': 'Amélie (2001)', '2': 'A'}),
    ('movies.dat', MOVIES_DAT, 'latin-1', {'1': 'Amélie (2001)', '2': '2001: A Space Odyssey (1968)'}),
    ('movies.csv', MOVIES_CSV, 'utf-8', {'1': 'Amélie, le film (2001)', '2': 'The "Best"'}),
])
@pytest.mark.parametrize('where', ['folder', 'below', 'archive', 'beside the log'])
def test_titles_are_found_where_the_log_lies(tmp_path, name, text, encoding, expected, where):
    folder = tmp_path / 'ml' if where == 'below' else tmp_path
    folder.mkdir(exist_ok=True)
    if where == 'archive':
        with zipfile.ZipFile(tmp_path / 'ml.zip', 'w') as archive:
            archive.writestr(f'ml/{name}', text.encode(encoding))
    else:
        (folder / name).write_bytes(text.encode(encoding))
    place = tmp_path / 'ratings.csv' if where == 'beside the log' else tmp_path
    assert titles_beside(place) == expected
    if where == 'folder':
        assert titles_of(folder / name) == expected


def test_without_such_a_file_there_are_none(tmp_path):
    (tmp_path / 'broken.zip').write_bytes(b'PK\x03\x04')
    (tmp_path / 'log.csv').write_text('user,item,time\n')
    assert titles_beside(tmp_path) == {} == titles_beside(tmp_path / 'absent' / 'log.csv')


def test_a_table_of_ones_own(tmp_path):
    frame = pl.DataFrame({'price': [1, 2, 3], 'asin': ['B1', 'B2', None], 'Title': ['One', None, 'Three']})
    frame.write_parquet(tmp_path / 'items.parquet')
    frame.write_csv(tmp_path / 'items.tsv', separator='\t')
    assert titles_of(tmp_path / 'items.parquet') == titles_of(tmp_path / 'items.tsv') == {'B1': 'One'}
    frame.drop('Title').write_csv(tmp_path / 'items.csv')
    with pytest.raises(DataError, match='one has to be named item_id and one title'):
        titles_of(tmp_path / 'items.csv')
    with pytest.raises(DataError, match='absent.csv cannot be read'):
        titles_of(tmp_path / 'absent.csv')
