"""Anchors: MLflow remembers how far the ledger went, so that a ledger that was rebuilt or cut off whole shows."""

from __future__ import annotations

import re

from homeostat.errors import NotFound, RegistryError
from homeostat.records import LedgerHead, Rollout
from homeostat.registry.aliases import Aliases

TAG = "homeostat.ledger"
"""Tag of a registered model: `NUMBER:HASH` of a ledger entry."""
PAGE = 1_000


class Anchors(Aliases):
    """The ledger's head in the tags of registered models, beside their aliases."""

    def mirror(self, rollout: Rollout, head: LedgerHead) -> list[str]:
        """Let the aliases mirror a row, and anchor the ledger; return one line for each alias that was repaired.

        Raises as `project_aliases` does.
        """
        repairs = self.project_aliases(rollout)
        self.anchor(rollout.model, head)
        return repairs

    def anchor(self, model: str, head: LedgerHead) -> None:
        """Remember the ledger's last entry with a model, unless a later one is; raises NotFound without that model."""
        from mlflow.exceptions import MlflowException

        with self._calls() as client:
            try:
                known = client.get_registered_model(model).tags.get(TAG)
            except MlflowException as error:
                if error.get_http_status_code() != 404:
                    raise
                raise NotFound(f"MLflow at {self.url} has no registered model {model!r}") from error
            if known is None or _read(model, known).sequence < head.sequence:
                client.set_registered_model_tag(model, TAG, f"{head.sequence}:{head.hash}")

    def anchors(self) -> list[LedgerHead]:
        """Return what MLflow remembers of the ledger; raises RegistryError for a tag that is none."""
        found, token = [], None
        with self._calls() as client:
            while True:
                page = client.search_registered_models(max_results=PAGE, page_token=token)
                found += [_read(one.name, one.tags[TAG]) for one in page if TAG in one.tags]
                token = page.token
                if not token:
                    return found


def _read(model: str, text: str) -> LedgerHead:
    match = re.fullmatch(r"(\d{1,18}):([0-9a-f]{64})", text)
    if match is None:
        raise RegistryError(
            f"MLflow's tag {TAG} of {model} is {text!r:.90}, not NUMBER:HASH: edited by hand? Delete it"
        )
    return LedgerHead(int(match[1]), match[2])
