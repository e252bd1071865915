"""The control store on SQLite and, where it is installed, on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.postgresql import PostgreSQL, find


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server for this run; skips without its programs."""
    if find("initdb") is None or find("postgres") is None:
        pytest.skip("PostgreSQL's initdb and postgres are not installed (Debian: apt install postgresql)")
    server = PostgreSQL()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def make_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Make the URL of a new, empty control store."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql").make_schema
    numbers = iter(range(10_000))
    return lambda: f"sqlite:///{tmp_path}/deep/control{next(numbers)}.db"


@pytest.fixture
def url(make_url: Callable[[], str]) -> str:
    """The URL of an empty control store."""
    return make_url()
