"""Headers that were read lately stay, and no more of them than that."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from dicom_gateway.assemble.header_cache import KEEP_S, MOST, HeaderCache
from dicom_gateway.assemble.headers import Header
from dicom_gateway.errors import UnusableSeries


class _Files:
    """Counts how often each is read; a header is any object here, one for each file."""

    def __init__(self) -> None:
        self.headers: dict[Path, Header] = {}
        self.read: list[Path] = []
        self.now_s = 0.0

    def __call__(self, path: Path) -> Header:
        self.read.append(path)
        if path.name == "broken":
            msg = "no DICOM file"
            raise UnusableSeries(msg, code="unsupported_object")
        return self.headers.setdefault(path, cast("Header", object()))

    def cache(self) -> HeaderCache:
        return HeaderCache(self, lambda: self.now_s)


def test_a_header_is_read_once_while_it_is_asked_for() -> None:
    """However long: each question counts."""
    files = _Files()
    cache = files.cache()
    for _ in range(5):
        assert cache(Path("a")) is files.headers[Path("a")]
        files.now_s += KEEP_S * 0.9
    assert files.read == [Path("a")]


def test_what_nobody_asks_for_goes_when_something_else_comes() -> None:
    """A night of studies takes no more memory than the last few of them."""
    files = _Files()
    cache = files.cache()
    for n in range(100):
        cache(Path(f"{n}"))
        files.now_s += KEEP_S / 10
    assert len(cache) <= 11
    cache(Path("99"))
    cache(Path("0"))
    assert files.read[-1] == Path("0")
    assert len(files.read) == 101


def test_there_are_never_more_than_so_many() -> None:
    """A storm of series at once."""
    cache = _Files().cache()
    for n in range(MOST + 50):
        cache(Path(f"{n}"))
    assert len(cache) == MOST


def test_a_file_that_cannot_be_read_is_read_again_the_next_time() -> None:
    """It may have been mended meanwhile."""
    files = _Files()
    cache = files.cache()
    for _ in range(2):
        with pytest.raises(UnusableSeries):
            cache(Path("broken"))
    assert len(files.read) == 2
    assert len(cache) == 0


def test_several_threads_may_ask_at_once() -> None:
    """Receiver, judge and workers do."""
    files = _Files()
    cache = files.cache()
    paths = [Path(f"{n % 300}") for n in range(6000)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(cache, paths)) == [files.headers[path] for path in paths]
    assert len(cache) == 300
