"""The page in a real browser."""
import re

import pytest

pytest.importorskip('selenium')

from selenium.webdriver.common.keys import Keys

from tests.browser import DESKTOP, PHONE
from tests.serve.conftest import served
from tests.serve.live_server import listening

TITLES = {f'item é{n}': f'Title {n} <b>&amp;' for n in range(30)}


@pytest.fixture(scope='module')
def address(small, tmp_path_factory):
    running = served(small, tmp_path_factory.mktemp('events'), titles=TITLES)
    with listening(running) as port:
        yield f'http://127.0.0.1:{port}/'
    running.stop()


NAMES = "[...document.querySelectorAll('#list .name')].map(name => name.firstChild.textContent)"
SHOWN = 'Number(document.body.dataset.turn || 0)'


def click(browser, selector):
    """Click, and wait for the next list."""
    turn = browser.run(f'return {SHOWN}')
    browser.run(f'document.querySelector({selector!r}).click()')
    browser.until(f'{SHOWN} > {turn}')


@pytest.mark.parametrize('width, dark', [(PHONE, True), (DESKTOP, False)])
def test_the_list_follows_what_is_done(browser, address, width, dark):
    noticed = [browser.open(address, width=width, dark=dark)]
    popular = browser.until(NAMES)
    assert 'popularity' in browser.run("return document.getElementById('reason').textContent")
    click(browser, '#anyone')
    before = browser.until(NAMES)
    assert before != popular and all(re.fullmatch(r'Title \d+ <b>&amp;', name) for name in before)
    click(browser, '#list li .acts button')  # Add, which keeps an event of this user
    after = browser.until(NAMES)
    assert after != before
    history = browser.run("return [...document.querySelectorAll('#history span')].map(line => line.textContent)")
    assert history[0] == before[0]
    click(browser, '#list li .acts button:nth-child(2)')  # Exclude
    assert after[0] not in browser.until(NAMES)
    click(browser, '#excluded button')
    assert browser.until(NAMES) == after
    noticed.append(browser.seen())
    assert [seen.console for seen in noticed] == [[], []]
    assert not any(seen.overflows for seen in noticed)
    requests = [request for seen in noticed for request in seen.requests]
    assert all(request.startswith(address) for request in requests) and address + 'events' in requests


def test_the_keyboard_is_enough(browser, address):
    browser.open(address, width=PHONE)
    browser.until(NAMES)
    field = browser.driver.find_element('id', 'item')
    field.send_keys('title 7')
    browser.until("document.querySelectorAll('#item-list li').length === 1")
    turn = browser.run(f'return {SHOWN}')
    field.send_keys(Keys.ENTER)
    browser.until(f'{SHOWN} > {turn}')
    assert browser.run("return document.querySelector('#history span').textContent") == TITLES['item é7']
    assert f'nearest in the history: {TITLES["item é7"]} (' in browser.run(
        "return document.querySelector('#list .why').textContent"
    )
    field.send_keys(Keys.ARROW_DOWN)
    browser.until("!document.getElementById('item-list').hidden")
    field.send_keys(Keys.ESCAPE)
    assert browser.run("return document.getElementById('item-list').hidden")


def test_what_can_be_asked_is_a_page_without_scripts(browser, address):
    for width in PHONE, DESKTOP:
        seen = browser.open(address + 'docs', width=width)
        assert (seen.console, seen.requests, seen.overflows) == ([], [address + 'docs'], False)
    text = browser.run('return document.body.innerText')
    assert 'POST /recommend' in text and 'skip_unknown' in text and browser.run('return document.scripts.length') == 0
