"""Where things are: the `HOMEOSTAT_*` environment, read once at the edge and passed inward."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from homeostat.errors import ConfigError


def find_root(start: Path | None = None) -> Path:
    """Return the nearest folder above `start` with prefect.yaml, else the checkout of this code, else `start`."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parent.parent):
        if (folder / "prefect.yaml").is_file():
            return folder
    return here


class Settings(BaseSettings):
    """Places only; what to do is in project.toml. Every default is local and on loopback."""

    model_config = SettingsConfigDict(env_prefix="HOMEOSTAT_", frozen=True, extra="ignore")

    root: Path = Field(default_factory=find_root, description="checkout: projects, flows and tasks")
    home: Path = Field(default=Path("var"), description="local state: keys, bundles, traffic, logs")
    bundles_url: str = Field(default="", description="fsspec URL of the bundle store; default HOME/bundles")
    control_url: str = Field(default="", description="SQLAlchemy URL of the control store; default SQLite in HOME")
    traffic: Path | None = Field(
        default=None,
        description="SQLite file of captured traffic; where only flows run, a glob of several servers' files, such as "
        "/captures/*/traffic.db; default HOME/traffic.db",
    )
    traffic_key: SecretStr | None = Field(
        default=None, description="encrypts captured traffic: 32 bytes in base64; older keys after a comma"
    )
    traffic_key_file: Path | None = Field(
        default=None, description="the same from a file (mode 600), a key on each line, the one to use first"
    )
    traffic_days: float = Field(
        default=90.0, ge=0, description="captured traffic is deleted after so many days; default 90, 0: never"
    )
    traffic_gigabytes: float = Field(
        default=10.0, ge=0, description="what captured traffic may take of the disk; default 10, 0: no limit"
    )
    mlflow_url: str = Field(default="", description="MLflow tracking URI; default SQLite under mlruns/")
    server_url: str = Field(default="http://127.0.0.1:8080", description="where the model server answers")
    host: str = Field(default="127.0.0.1", description="address that the model server binds to")
    port: int = Field(default=8080, ge=0, le=65535, description="REST port of the model server")
    grpc_port: int = Field(default=8081, ge=0, le=65535, description="gRPC port of the model server")
    gateway_host: str = Field(default="127.0.0.1", description="address that the gateway binds to")
    gateway_port: int = Field(default=8090, ge=0, le=65535, description="port of the gateway, which takes webhooks")
    behind_proxy: str = Field(
        default="",
        description="addresses or networks of the proxies that end TLS before server and gateway, separated by commas; "
        "their X-Forwarded-For is believed",
    )
    tls_certificate: Path | None = Field(default=None, description="certificate chain of the model server, PEM")
    tls_key: Path | None = Field(default=None, description="its private key, PEM")
    tls_client_ca: Path | None = Field(default=None, description="clients need a certificate of this authority, PEM")
    jwt_keys: Path | None = Field(default=None, description="JWKS file, or public key in PEM form, of the token issuer")
    jwt_issuer: str = Field(default="", description="`iss` of accepted tokens")
    jwt_audience: str = Field(default="", description="`aud` of accepted tokens")
    jwt_leeway_seconds: float = Field(default=30.0, ge=0, le=600, description="how far clocks may differ; default 30")
    rate_limit: float = Field(
        default=0.0, ge=0, le=1e6, description="requests a second of each key, else address; default 0: no limit"
    )
    rate_burst: int = Field(
        default=0, ge=0, le=1_000_000, description="requests at once; default 0: two seconds of HOMEOSTAT_RATE_LIMIT"
    )
    workers: int = Field(default=1, ge=1, le=64, description="processes that answer; default 1")
    max_connections: int = Field(
        default=4096, ge=1, le=100_000, description="connections at once; default 4096, fewer if files are limited"
    )

    access_log: bool = Field(
        default=False, description="a JSON line on stdout for each request, in ECS field names; default false"
    )
    traces: bool = Field(
        default=False,
        description="send OpenTelemetry traces (extra `otel`), whereto in the OTEL_* variables; default false",
    )

    @model_validator(mode="before")
    @classmethod
    def _absolute(cls, values: dict[str, object]) -> dict[str, object]:
        root = Path(str(values.get("root") or find_root())).resolve()
        home = root / str(values.get("home") or "var")
        values["root"], values["home"] = root, home
        values["traffic"] = root / str(values.get("traffic") or home / "traffic.db")
        for name in ("tls_certificate", "tls_key", "tls_client_ca", "jwt_keys", "traffic_key_file"):
            values[name] = root / str(values[name]) if values.get(name) else None
        values["bundles_url"] = values.get("bundles_url") or f"file://{home}/bundles"
        values["control_url"] = values.get("control_url") or f"sqlite:///{home}/control.db"
        values["mlflow_url"] = values.get("mlflow_url") or f"sqlite:///{root}/mlruns/mlflow.db"
        return values

    @property
    def traffic_path(self) -> Path:
        """SQLite file of captured traffic."""
        return self.traffic or self.home / "traffic.db"


def load_settings(**overrides: object) -> Settings:
    """Read the environment; a value that does not fit is a ConfigError that names the variable."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = "HOMEOSTAT_" + "_".join(str(part) for part in first["loc"]).upper()
        raise ConfigError(f"environment variable {name}: {first['msg']} (got {first['input']!r})") from error
