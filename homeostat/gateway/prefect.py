"""What the gateway asks of Prefect's REST API: one flow run for each decision, and events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx

from homeostat.errors import HomeostatError, Unavailable


class PrefectUnavailable(Unavailable):
    """Prefect does not answer, or does not know the deployment yet."""


class FlowRunRefused(HomeostatError):
    """Prefect knows the deployment, and does not take the flow run."""


class Prefect:
    """Prefect's server by its API URL, such as http://127.0.0.1:4200/api. Safe to use from several threads."""

    def __init__(self, url: str, *, auth: tuple[str, str] | None = None, timeout_seconds: float = 10.0) -> None:
        """Do not ask yet. auth: user and password, where the server asks for them."""
        self.url = url.rstrip("/")
        self._client = httpx.Client(timeout=timeout_seconds, auth=auth, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def start(self, deployment: str, parameters: Mapping[str, Any], key: str, tags: Sequence[str]) -> str:
        """Start a flow run of FLOW/NAME, or find the one that this key has started; return its id.

        Raises PrefectUnavailable, and FlowRunRefused when the parameters are not the flow's.
        """
        flow, _, name = deployment.partition("/")
        found = self._ask("GET", f"/deployments/name/{quote(flow, safe='')}/{quote(name, safe='')}")
        if found.status_code == 404:
            raise PrefectUnavailable(f"Prefect has no deployment {deployment}; `prefect --no-prompt deploy --all`")
        known = self._json(found)
        allowed = (known.get("parameter_openapi_schema") or {}).get("properties") or {}
        unknown = sorted(set(parameters) - set(allowed))
        if unknown:  # Prefect would take it, and the flow run would crash
            raise FlowRunRefused(f"{deployment} has no parameter {unknown[0]!r}; it has {', '.join(allowed) or 'none'}")
        typed = {name: _typed(value, allowed[name]) for name, value in parameters.items()}
        asked = {
            "parameters": {**(known.get("parameters") or {}), **typed},
            "enforce_parameter_schema": True,
            "state": {"type": "SCHEDULED"},
            "tags": list(tags),
            "idempotency_key": f"{deployment}:{key}",  # Prefect's are unique within a flow, not a deployment
        }
        made = self._ask("POST", f"/deployments/{known['id']}/create_flow_run", asked)
        if made.status_code in (400, 409, 422):
            raise FlowRunRefused(f"{deployment}: Prefect refuses its parameters: {_detail(made)}")
        return str(self._json(made)["id"])

    def state(self, flow_run: str) -> dict[str, str]:
        """Return name and state of a flow run; raises PrefectUnavailable."""
        found = self._json(self._ask("GET", f"/flow_runs/{quote(flow_run, safe='')}"))
        return {"name": str(found.get("name")), "state": str(found.get("state_name"))}

    def emit(self, event: Mapping[str, Any]) -> None:
        """Send one event; raises PrefectUnavailable, and FlowRunRefused when Prefect does not take it."""
        sent = self._ask("POST", "/events", [event])
        if sent.status_code in (400, 409, 422):
            raise FlowRunRefused(f"event {event.get('event')}: {_detail(sent)}")
        if not sent.is_success:
            raise PrefectUnavailable(f"Prefect at {self.url}: {_detail(sent)}")

    def _ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        with _transport(self.url):
            return self._client.request(method, f"{self.url}{path}", json=body)

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        if not response.is_success:
            raise PrefectUnavailable(f"Prefect at {self.url}: {_detail(response)}")
        try:
            found: dict[str, Any] = response.json()
        except ValueError as error:
            raise PrefectUnavailable(f"Prefect at {self.url} does not answer with JSON; is it Prefect?") from error
        return found


def _typed(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return a whole number that came as text, as MLflow's versions do, as the number that the flow takes."""
    whole = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19
    return int(value) if whole and schema.get("type") == "integer" else value


@contextmanager
def _transport(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise PrefectUnavailable(f"Prefect at {url} does not answer: {error or type(error).__name__}") from error


def _detail(response: httpx.Response) -> str:
    return f"{response.status_code} {response.text:.300}".strip()
