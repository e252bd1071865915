"""Every error that homeostat raises on purpose.

HomeostatError
├── ConfigError              project.toml, the environment, or the project class is wrong
├── DataInvalid              a dataset or a row breaks its contract
├── TrainingFailed           the loss is not finite, or the model cannot be fitted
├── GateFailed               something that stops a challenger
│   ├── ExportUnsupported    the model has an operation that ONNX export cannot express
│   └── ExportMismatch       the exported graph does not answer as the model does
├── MonitoringFailed         a drift or quality report cannot be made or read
├── RegistryError            MLflow answers, and refuses what was asked
├── BundleInvalid            bytes, signature, manifest or graph of a bundle do not hold
│   └── PreflightFailed      its graph fails in the process that tries it first
├── ControlError             the control store refuses a change
│   ├── Conflict             somebody else changed the row first (compare-and-set lost)
│   │   └── LookConflict     another look at the traffic was kept first (transient: this one goes on from it)
│   ├── NotFound             no such model or version
│   ├── Quarantined          the version was stopped or rolled back, and is not let in again
│   └── LedgerBroken         the hash chain of the ledger does not hold
├── ServingError             the model server cannot do what was asked
│   ├── RequestInvalid       the client's request is wrong
│   │   ├── Unauthenticated  no key or token, or one that does not hold
│   │   ├── Forbidden        the client may not do that
│   │   └── TooManyRequests  the client asks faster than it may
│   └── RolloutTimeout       the server did not report the version in time
└── Unavailable              a service does not answer (transient: a retry may pass)
    ├── RegistryUnavailable  MLflow
    ├── ControlUnavailable   the control store
    └── ServerUnavailable    the model server

Only a `LookConflict`, `Unavailable` and what is under it are ever retried. A message gives the fact,
the place and the remedy.
"""

from collections.abc import Sequence


class HomeostatError(Exception):
    """Root of the tree; `transient` says whether a retry may pass."""

    transient: bool = False


class ConfigError(HomeostatError):
    """project.toml, the environment, or the project class is wrong."""


class DataInvalid(HomeostatError):
    """A dataset or a row breaks its contract; `breaches` holds one line for each."""

    def __init__(self, message: str, breaches: Sequence[str] = ()) -> None:
        self.breaches = tuple(breaches)
        lines = "".join(f"\n  - {breach}" for breach in self.breaches)
        super().__init__(f"{message}{lines}")


class TrainingFailed(HomeostatError):
    """The loss is not finite, or the model cannot be fitted."""


class GateFailed(HomeostatError):
    """A gate stops a challenger."""


class ExportUnsupported(GateFailed):
    """The model has an operation that ONNX export cannot express."""


class ExportMismatch(GateFailed):
    """The exported graph does not answer as the model does."""


class MonitoringFailed(HomeostatError):
    """A drift or quality report cannot be made or read."""


class RegistryError(HomeostatError):
    """MLflow answers, and refuses what was asked."""


class BundleInvalid(HomeostatError):
    """Bytes, signature, manifest or graph of a bundle do not hold."""


class PreflightFailed(BundleInvalid):
    """A bundle's graph fails in the process that tries it first."""


class ControlError(HomeostatError):
    """The control store refuses a change."""


class Conflict(ControlError):
    """Somebody else changed the rollout row first."""


class LookConflict(Conflict):
    """Another look at the traffic was kept first; a look from its evidence on may be kept."""

    transient = True


class NotFound(ControlError):
    """No such model or version."""


class Quarantined(ControlError):
    """The version was stopped or rolled back, and is not let in again."""


class LedgerBroken(ControlError):
    """The hash chain of the ledger does not hold."""


class ServingError(HomeostatError):
    """The model server cannot do what was asked."""


class RequestInvalid(ServingError):
    """The client's request is wrong; `status` is the HTTP status to answer with."""

    def __init__(self, message: str, status: int = 400) -> None:
        self.status = status
        super().__init__(message)


class Unauthenticated(RequestInvalid):
    """No key or token came, or one that does not hold."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=401)


class Forbidden(RequestInvalid):
    """The client is known, and may not do that."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=403)


class TooManyRequests(RequestInvalid):
    """The client asks faster than it may; `retry_after` is in whole seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(message, status=429)


class RolloutTimeout(ServingError):
    """The server did not report the version in time."""


class Unavailable(HomeostatError):
    """A service does not answer."""

    transient = True


class RegistryUnavailable(Unavailable):
    """MLflow does not answer."""


class ControlUnavailable(Unavailable):
    """The control store does not answer."""


class ServerUnavailable(Unavailable):
    """The model server does not answer."""
