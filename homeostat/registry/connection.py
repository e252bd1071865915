"""Reaching one MLflow server or database; MLflow is imported at the first call."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from homeostat.errors import RegistryError, RegistryUnavailable
from homeostat.reach import ping_database, ping_http

# Read by MLflow at import or at each call: fail soon, and send nothing to anybody.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "GIT_PYTHON_REFRESH": "quiet",
}


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what MLflow says about its own code while it is imported and builds its tables."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"The ``noload`` loader strategy is deprecated")
        warnings.filterwarnings("ignore", r".*Any type hint is inferred as AnyType")
        yield


class Connection:
    """One MLflow tracking server or database; nothing is imported or connected before the first call."""

    def __init__(self, tracking_url: str) -> None:
        self.url = tracking_url
        self._client: Any = None

    def ping(self, timeout_seconds: float = 3.0) -> None:
        """Raise RegistryUnavailable unless MLflow answers; does not import it."""
        try:
            if self.url.startswith(("http://", "https://")):
                ping_http(self.url, timeout_seconds)
            elif "://" in self.url:
                ping_database(self.url)
            else:
                raise RegistryError(f"MLflow URI {self.url!r}: use http://, https:// or a database URL")
        except OSError as error:
            raise self._unavailable(error) from error

    def exists(self) -> bool:
        """Whether there is anything to reach: False for a SQLite file that was never made."""
        path = self.url.removeprefix("sqlite:///")
        return path == self.url or Path(path).is_file()

    def _unavailable(self, error: object) -> RegistryUnavailable:
        return RegistryUnavailable(
            f"MLflow at {self.url} does not answer: {error}; start it (`make up`) or set HOMEOSTAT_MLFLOW_URL"
        )

    def _import(self) -> None:
        """Import MLflow, once it answers."""
        if self._client is not None:
            return
        self.ping()
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            with quiet():
                import mlflow  # noqa: F401 - sets itself up
        except ModuleNotFoundError as error:
            raise RegistryError(f"MLflow at {self.url} needs {error.name}: pip install 'homeostat[train]'") from error
        logging.getLogger("alembic").setLevel(logging.WARNING)

    def _open(self) -> Any:
        """Return the client; the first call opens the store, and makes its tables."""
        if self._client is None:
            import mlflow

            with quiet():
                self._client = mlflow.MlflowClient(tracking_uri=self.url, registry_uri=self.url)
        return self._client

    @contextmanager
    def _calls(self) -> Iterator[Any]:
        self._import()
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import DBAPIError

        try:
            yield self._open()
        except MlflowException as error:
            status = error.get_http_status_code()
            if status >= 500 or status == 429:
                raise self._unavailable(error) from error
            raise RegistryError(f"MLflow at {self.url} refuses: {error}") from error
        except (OSError, DBAPIError) as error:  # requests' errors are OSErrors
            raise self._unavailable(error) from error

    def _artifact_root(self, name: str) -> str | None:
        if not self.url.startswith("sqlite:///"):
            return None  # the server knows
        return (Path(self.url.removeprefix("sqlite:///")).resolve().parent / "artifacts" / name).as_uri()

    def _experiment(self, client: Any, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(client.create_experiment(name, artifact_location=self._artifact_root(name)))
            except MlflowException as error:
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise RegistryError(f"MLflow at {self.url}: no experiment {name!r}: {error}") from error
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
