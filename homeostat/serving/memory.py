"""What the workers of a HOME keep in files: each model's last verified row, what passed preflight, and retries."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from homeostat.dataset import write_artifact
from homeostat.records import BundleRef, Rollout

log = logging.getLogger(__name__)

Stamp = tuple[int, int] | None


def _row(values: dict[str, Any]) -> Rollout:
    refs = {
        name: BundleRef(**values[name]) if values[name] else None for name in ("champion", "challenger", "previous")
    }
    return Rollout(**{**values, **refs})


class Memory:
    """One JSON file for each model under HOME/serving, written whole and renamed into place."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._verified: dict[str, bool] = {}

    def read(self) -> list[Rollout]:
        """Return the remembered rows; a file that cannot be read is passed over and logged."""
        rows = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                values = json.loads(path.read_bytes())
                row = _row(values["row"])
                self._verified |= {str(digest): bool(flag) for digest, flag in values["verified"].items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                log.error("%s cannot be read (%s); the control store will say what is live", path, error)
                continue
            rows.append(row)
        return rows

    def verified(self, ref: BundleRef) -> bool | None:
        """Return whether a bundle that has passed preflight is batch-invariant, or None when it has not passed."""
        return self._verified.get(ref.manifest_sha256)

    def add(self, ref: BundleRef, *, batch_invariant: bool) -> None:
        """Note that a bundle has passed preflight."""
        self._verified[ref.manifest_sha256] = batch_invariant

    def write(self, row: Rollout, digests: list[str]) -> None:
        """Remember a row whose champion is verified, and these digests."""
        verified = {digest: self._verified[digest] for digest in digests if digest in self._verified}
        text = json.dumps({"row": asdict(row), "verified": verified}, indent=1)
        try:
            write_artifact(self._folder / f"{row.model}.json", text.encode())
        except OSError as error:
            log.error("%s cannot be written (%s); after a restart the control store is needed", self._folder, error)


class Retries:
    """An empty file for each model, made anew when an operator asks for a retry: what all workers of a HOME see."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ask(self, model: str) -> None:
        """Ask for a retry; raises OSError. model: a name that was checked, for it becomes a file's."""
        write_artifact(self._folder / model, b"")

    def stamp(self, model: str) -> Stamp:
        """Return what changes with each time that a retry is asked for."""
        try:
            found = (self._folder / model).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino
