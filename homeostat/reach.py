"""Whether MLflow can be reached, asked in a few milliseconds and without importing it."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path


def ping_http(url: str, timeout_seconds: float) -> None:
    """Raise OSError unless an MLflow server answers its health question."""
    try:
        # only http and https come here
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=timeout_seconds):  # noqa: S310
            return
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise
    except ValueError as error:
        raise OSError(str(error)) from error


def ping_database(url: str) -> None:
    """Raise OSError unless a database answers; makes the folder of a SQLite file."""
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    try:
        engine = create_engine(url, poolclass=NullPool)
        if engine.url.get_backend_name() == "sqlite" and engine.url.database:
            Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        with engine.connect() as connection:
            inspect(connection).get_table_names()
    except (SQLAlchemyError, ModuleNotFoundError) as error:
        raise OSError(str(getattr(error, "orig", None) or error)) from error
