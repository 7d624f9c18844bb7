"""One browser for all tests of pages."""

import pytest
from browser import Browser, find_browser


@pytest.fixture(scope="session")
def browser():
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium or Chrome in PATH; name one in OPTIML_BROWSER")
    browser = Browser(path)
    yield browser
    browser.close()
