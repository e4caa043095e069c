"""The browser that looks at pages notices what it is there to notice."""
import pytest

from tests.browser import DESKTOP, PHONE

PAGE = '''<!doctype html><html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,"><title>T</title>
<style>@media (prefers-color-scheme: dark) {{ body {{ background: rgb(1, 2, 3); }} }}</style>
<body>{body}</body></html>'''


@pytest.fixture
def page(tmp_path):
    def write(body=''):
        path = tmp_path / 'page.html'
        path.write_text(PAGE.format(body=body))
        return path

    return write


def test_a_quiet_page(browser, page):
    path = page('<p>quiet</p>')
    seen = browser.open(path)
    assert (seen.console, seen.requests, seen.overflows) == ([], [path.as_uri()], False)


@pytest.mark.parametrize('width', [PHONE, DESKTOP])
def test_the_width_is_the_screens_and_a_wider_page_overflows(browser, page, width):
    for beyond in (0, 1):
        body = f'<div style="position: absolute; left: 0; height: 1px; width: {width + beyond}px"></div>'
        assert browser.open(page(body), width=width).overflows is bool(beyond)
        assert browser.run('return innerWidth') == width


def test_console_and_requests_are_noticed(browser, page):
    seen = browser.open(page('<img src="missing.png"><script>console.error("broken")</script>'))
    assert any('broken' in message for message in seen.console)
    assert [address.rpartition('/')[2] for address in seen.requests] == ['page.html', 'missing.png']
    assert browser.open(page()).console == []


def test_light_and_dark(browser, page):
    for dark in (False, True):
        browser.open(page(), dark=dark)
        colour = browser.run('return getComputedStyle(document.body).backgroundColor')
        assert (colour == 'rgb(1, 2, 3)') is dark


def test_a_picture_shows_the_whole_page(browser, page, tmp_path):
    browser.open(page('<div style="height: 2000px"></div>'), width=PHONE)
    browser.picture(tmp_path / 'page.png')
    width, height = (int.from_bytes((tmp_path / 'page.png').read_bytes()[at:at + 4], 'big') for at in (16, 20))
    assert width == PHONE and height >= 2000
