"""Titles of items, from the files of MovieLens."""
import zipfile

import pytest

from ssd4rec_jax.data.titles import read_titles

U_ITEM = '1|Amélie (2001)|01-Jan-2001||http://x|0|1\n2|A | B|\nbroken\n3||\n'
MOVIES_DAT = '1::Amélie (2001)::Comedy\n2::2001: A Space Odyssey (1968)::Drama\n'
MOVIES_CSV = 'movieId,title,genres\n1,"Amélie, le film (2001)",Comedy\n2,"The ""Best""",Drama\n'


@pytest.mark.parametrize('name, text, encoding, expected', [
    ('u.item', U_ITEM, 'latin-1', {'1': 'Amélie (2001)', '2': 'A'}),
    ('movies.dat', MOVIES_DAT, 'latin-1', {'1': 'Amélie (2001)', '2': '2001: A Space Odyssey (1968)'}),
    ('movies.csv', MOVIES_CSV, 'utf-8', {'movieId': 'title', '1': 'Amélie, le film (2001)', '2': 'The "Best"'}),
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
    assert read_titles(place) == expected


def test_without_such_a_file_there_are_none(tmp_path):
    (tmp_path / 'broken.zip').write_bytes(b'PK\x03\x04')
    (tmp_path / 'log.csv').write_text('user,item,time\n')
    assert read_titles(tmp_path) == {} == read_titles(tmp_path / 'absent' / 'log.csv')
