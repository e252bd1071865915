"""Looks at live traffic: the version that was champion, its bundle, what labels and columns say, and the page of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from homeostat.bundle import Bundle, load_public_key, open_bundle
from homeostat.config import ProjectConfig
from homeostat.dataset import write_artifact
from homeostat.errors import BundleInvalid, DataInvalid, NotFound
from homeostat.project import Project
from homeostat.records import BundleRef, Monitoring
from homeostat.sealing import load_keyring
from homeostat.settings import Settings
from homeostat.trial import Tried, find_tried

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from homeostat.control.store import ControlStore
    from homeostat.control.windows import Windows
    from homeostat.monitoring.page import Bins

# Monitoring is imported by what looks: a flow that imports this module must stay light.

logger = logging.getLogger(__name__)

HISTORY = 100
"""Earlier windows that a page shows."""
HISTOGRAMS = 100
"""Columns of which a page shows the shape."""


@dataclass(frozen=True)
class Live:
    """Who was champion at a time, since when (UTC), who before, and who now wants to be the next."""

    champion: Bundle
    since: datetime
    previous: Bundle | None
    tried: tuple[Bundle, datetime] | None = None
    """The challenger that live labels decide on, and since when rows count."""


def find_live(store: ControlStore, settings: Settings, config: ProjectConfig, at: datetime | None = None) -> Live:
    """Return the champion of now, or of a time, with verified bytes. Raises NotFound, BundleInvalid, Unavailable."""
    public_key, model = load_public_key(settings.home), config.name

    def opened(ref: BundleRef) -> Bundle:
        return open_bundle(ref, public_key)

    if at is None:
        row = store.row(model)
        if row.champion is None:
            raise NotFound(f"{model} has no champion to monitor; prefect deployment run 'lifecycle/{model}'")
        tried = find_tried(store, config)
        return Live(
            opened(row.champion),
            datetime.fromisoformat(row.since),
            opened(row.previous) if row.previous else None,
            _opened_challenger(tried, public_key) if tried else None,
        )
    made = store.champion_at(model, at)
    since = datetime.fromisoformat(made.time)
    try:
        before = store.champion_at(model, since - timedelta(microseconds=1))
    except NotFound:
        before = None
    refs = [store.bundle(model, entry.version) for entry in (made, before) if entry and entry.version is not None]
    return Live(opened(refs[0]), since, opened(refs[1]) if len(refs) > 1 else None)


def _opened_challenger(tried: Tried, public_key: Ed25519PublicKey) -> tuple[Bundle, datetime] | None:
    """Return the challenger; None when its bundle is damaged, which is no reason not to look at the live version."""
    try:
        return open_bundle(tried.bundle, public_key), tried.since
    except BundleInvalid as error:
        logger.warning("%s: challenger v%d is not tried: %s", tried.bundle.model, tried.bundle.version, error)
        return None


def look(
    project: Project,
    config: ProjectConfig,
    settings: Settings,
    live: Live,
    *,
    workspace: Path,
    since: datetime | None = None,
    until: datetime | None = None,
    state: str = "",
    against: Bundle | None = None,
) -> tuple[Monitoring, str]:
    """Look at what the live version answered from `since` to `until`; return what was found, and the state after it.

    since: config.monitor.window_hours before the end by default. until: now by default. against: a
    version whose reference rows, as the live version answers them, and whose answers to the same
    labelled rows stand in for the live version's reference and its predecessor. Files go to
    `workspace`. Errors and `state` as in `monitor`.
    """
    from homeostat.monitoring.monitor import monitor

    now = until or datetime.now(UTC)
    beside = against or live.previous
    return monitor(
        project,
        config,
        version=live.champion.ref.version,
        onnx=live.champion.onnx,
        reference=_reference(live, against),
        predecessor=(beside.ref.version, beside.onnx) if beside else None,
        tried=(live.tried[0].ref.version, live.tried[0].onnx, live.tried[1]) if live.tried else None,
        traffic=settings.traffic_path,
        workspace=workspace,
        since=since or now - timedelta(hours=config.monitor.window_hours),
        champion_since=live.since,
        now=now,
        seed=config.train.seed,
        keys=load_keyring(settings),
        state=state,
        contract=live.champion.contract,
    )


def write_pages(
    project: Project,
    config: ProjectConfig,
    live: Live,
    monitoring: Monitoring,
    store: ControlStore,
    windows: Windows,
    workspace: Path,
    *,
    against: Bundle | None = None,
) -> tuple[Path, Path]:
    """Write monitoring.json and page.html of a look into `workspace` and return their paths."""
    from homeostat.monitoring.document import write_monitoring
    from homeostat.monitoring.page import window_page

    page = window_page(
        monitoring,
        earlier_windows(windows, monitoring.model, monitoring.version),
        store.history(monitoring.model),
        bins=_bins(project, config, live, monitoring, against),
    )
    written = write_artifact(workspace / "monitoring.json", write_monitoring(monitoring))
    return Path(written.path), Path(write_artifact(workspace / "page.html", page).path)


def earlier_windows(windows: Windows, model: str, version: int) -> tuple[Monitoring, ...]:
    """Return the looks that were kept of a version, oldest first; one of another format is left out, and logged."""
    from homeostat.monitoring.document import read_monitoring

    found = []
    for one in windows.history(model, version, HISTORY):
        try:
            found.append(read_monitoring(one.found))
        except DataInvalid as error:
            logger.warning("%s v%d, look %d: %s: not shown", model, version, one.sequence, error)
    return tuple(found)


def _reference(live: Live, against: Bundle | None) -> bytes:
    from homeostat.monitoring.reference import answer_again

    return answer_again(against.reference, live.champion.onnx) if against else live.champion.reference


def _bins(
    project: Project, config: ProjectConfig, live: Live, monitoring: Monitoring, against: Bundle | None
) -> dict[str, Bins]:
    """Return the shapes of the columns that matter most; none of traffic that is masked, or not kept as a file."""
    if not monitoring.window.path or live.champion.manifest.serve.masking is not None:
        return {}
    import pandas as pd

    from homeostat.monitoring.columns import watched_frame
    from homeostat.monitoring.page import bin_columns
    from homeostat.monitoring.page.words import by_severity
    from homeostat.monitoring.reference import load_reference

    reference = load_reference(_reference(live, against))
    expected = watched_frame(project, config.task, reference.inputs, reference.columns, reference.outputs)
    columns = [column.column for column in by_severity(monitoring.columns)[:HISTOGRAMS]]
    current = pd.read_parquet(monitoring.window.path)
    return bin_columns(expected, current, columns)
