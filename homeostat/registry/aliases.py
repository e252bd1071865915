"""Aliases: @champion and @challenger of MLflow mirror the rollout row."""

from __future__ import annotations

from homeostat.errors import NotFound
from homeostat.records import Rollout
from homeostat.registry.connection import Connection

ALIASES = ("champion", "challenger")


class Aliases(Connection):
    """The aliases of registered models."""

    def aliases(self, model: str) -> dict[str, int]:
        """Return alias -> version of a model; raises NotFound when MLflow does not know the model."""
        from mlflow.exceptions import MlflowException

        with self._calls() as client:
            try:
                found = client.get_registered_model(model).aliases
            except MlflowException as error:
                if error.get_http_status_code() != 404:
                    raise
                raise NotFound(f"MLflow at {self.url} has no registered model {model!r}") from error
        return {str(alias): int(version) for alias, version in dict(found).items()}

    def project_aliases(self, rollout: Rollout) -> list[str]:
        """Make @champion and @challenger mirror the rollout row; return one line for each repair.

        Raises NotFound when MLflow does not know the model or the version; other aliases stay.
        """
        from mlflow.exceptions import MlflowException

        present = self.aliases(rollout.model)
        repairs = []
        with self._calls() as client:
            for alias in ALIASES:
                bundle = getattr(rollout, alias)
                wanted = bundle.version if bundle else None
                had = present.get(alias)
                if wanted == had:
                    continue
                try:
                    if wanted is None:
                        client.delete_registered_model_alias(rollout.model, alias)
                    else:
                        client.set_registered_model_alias(rollout.model, alias, str(wanted))
                except MlflowException as error:
                    if error.get_http_status_code() != 404:
                        raise
                    raise NotFound(f"MLflow at {self.url} has no {rollout.model} v{wanted} for @{alias}") from error
                names = [f"v{version}" if version else "nothing" for version in (had, wanted)]
                repairs.append(f"@{alias} of {rollout.model}: {names[0]} -> {names[1]}")
        return repairs
