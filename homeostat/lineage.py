"""Where a model version comes from: data, configuration, locked requirements and git commit, as digests."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
from pathlib import Path

from homeostat.config import ProjectConfig
from homeostat.records import Lineage

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"


def _git(root: Path, *arguments: str) -> str | None:
    # a git hook exports GIT_DIR and friends, which would point at another checkout
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            check=False,
            env=environment,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        logger.warning("git cannot be asked about %s: %s", root, error)
        return None
    if done.returncode != 0:
        logger.info("git says nothing of %s: %s", root, done.stderr.strip())
        return None
    return done.stdout.strip()


def git_state(root: Path) -> tuple[str, bool]:
    """Return the commit of a checkout and whether files differ from it; `unknown`, False outside git."""
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if not commit:
        return UNKNOWN, False
    changes = _git(root, "status", "--porcelain")
    return commit, bool(changes)


def requirements_sha256(root: Path) -> str:
    """Digest of names and content of requirements/*.txt; `unknown` when there are none."""
    files = sorted((root / "requirements").glob("*.txt"))
    if not files:
        return UNKNOWN
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.name}|{len(content)}|".encode())
        digest.update(content)
    return digest.hexdigest()


def make_lineage(
    pipeline_id: str, dataset_sha256: str, config: ProjectConfig, root: Path, parent_version: int | None
) -> Lineage:
    """Collect the lineage of a pipeline run in the checkout `root`; parent_version is what it was compared with."""
    commit, dirty = git_state(root)
    return Lineage(
        pipeline_id=pipeline_id,
        dataset_sha256=dataset_sha256,
        config_sha256=config.sha256(),
        requirements_sha256=requirements_sha256(root),
        git_commit=commit,
        git_dirty=dirty,
        parent_version=parent_version,
    )
