"""Pages in a headless Chromium: what one looks like at a width, in light or dark, and what it asks the network for."""
import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from urllib3.exceptions import HTTPError

from tests.waiting import SECONDS, until

PHONE, DESKTOP = 390, 1280  # CSS pixels
_HEIGHT = 900
_STARTS = 5
_ARGUMENTS = (
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-component-update',
    '--disable-background-networking', '--disable-sync', '--disable-dev-shm-usage', '--hide-scrollbars',
)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the browser noticed of a page that it opened.

    console: what it wrote to the console, errors and failed requests among it. requests: each address that it asked
    for, the page itself first; data: addresses are none. overflows: whether the page is wider than the screen.
    """

    console: list[str]
    requests: list[str]
    overflows: bool


class Browser:
    """One running Chromium; `driver` is Selenium's, for all that is not here."""

    def __init__(self, profile: Path):
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which('chromium') or ''
        for argument in (*_ARGUMENTS, f'--user-data-dir={profile}'):
            options.add_argument(argument)
        options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
        self.driver = webdriver.Chrome(options, Service(shutil.which('chromedriver')))
        self.driver.set_script_timeout(SECONDS)

    def open(self, page: str | Path, *, width: int = DESKTOP, dark: bool = False) -> Seen:
        """Open an address or a file on a screen of so many CSS pixels, and wait until it is loaded."""
        # A headless window has a least width, the emulated screen of a device has none.
        self._tell('Emulation.setDeviceMetricsOverride', width=width, height=_HEIGHT, deviceScaleFactor=1, mobile=False)
        scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
        self._tell('Emulation.setEmulatedMedia', features=[scheme])
        self._messages(), self._requests()  # what an earlier page left
        self.driver.get(page.resolve().as_uri() if isinstance(page, Path) else page)
        return self.seen()

    def seen(self) -> Seen:
        """What was noticed since the page was opened, or since the last call."""
        overflows = self.run('const page = document.scrollingElement; return page.scrollWidth > page.clientWidth')
        return Seen(self._messages(), self._requests(), overflows)

    def run(self, script: str, *arguments):
        """What the JavaScript returns; it finds the arguments in `arguments`."""
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str):
        """What an expression of JavaScript is once it is true."""
        return until(lambda: self.run(f'return {script}'))

    def picture(self, path: Path) -> None:
        """Write a PNG file of the whole page, at the width at which it was opened."""
        width, height = self.run('return [innerWidth, document.documentElement.scrollHeight]')
        shown = dict(width=width, deviceScaleFactor=1, mobile=False)
        self._tell('Emulation.setDeviceMetricsOverride', height=height, **shown)
        path.write_bytes(self.driver.get_screenshot_as_png())
        self._tell('Emulation.setDeviceMetricsOverride', height=_HEIGHT, **shown)

    def close(self) -> None:
        """End it, or leave it where it has ended by itself."""
        with contextlib.suppress(WebDriverException, HTTPError):
            self.driver.quit()

    def _tell(self, command: str, **arguments) -> None:
        self.driver.execute_cdp_cmd(command, arguments)

    def _messages(self) -> list[str]:
        return [entry['message'] for entry in self.driver.get_log('browser')]

    def _requests(self) -> list[str]:
        events = [json.loads(entry['message'])['message'] for entry in self.driver.get_log('performance')]
        addresses = [e['params']['request']['url'] for e in events if e['method'] == 'Network.requestWillBeSent']
        return [address for address in addresses if not address.startswith('data:')]


@pytest.fixture(scope='session')
def browser(tmp_path_factory) -> Iterator[Browser]:
    """The one browser of the test process."""
    if missing := [name for name in ('chromium', 'chromedriver') if shutil.which(name) is None]:
        pytest.skip(f'{" and ".join(missing)} not found: install the packages chromium and chromium-driver')
    opened = _opened(tmp_path_factory)
    yield opened
    opened.close()


def _opened(tmp_path_factory) -> Browser:
    """A browser, whose start on a busy machine may take longer than chromedriver waits: it is tried again."""
    for _ in range(_STARTS - 1):
        with contextlib.suppress(WebDriverException, HTTPError):
            return Browser(tmp_path_factory.mktemp('chromium'))
    return Browser(tmp_path_factory.mktemp('chromium'))
