"""MLflow: runs, metrics, artifacts, model versions, and the aliases that mirror the rollout row."""

from homeostat.registry.anchors import Anchors
from homeostat.registry.tracking import EpochLogger, Tracking
from homeostat.registry.versions import Versions

__all__ = ["EpochLogger", "Registry"]


class Registry(Tracking, Versions, Anchors):
    """One MLflow tracking server or database; nothing is imported or connected before the first call.

    Every method raises RegistryUnavailable when MLflow does not answer (a retry may pass), and
    RegistryError when it refuses what was asked.
    """
