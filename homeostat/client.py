"""Who asks: a client, the scopes that it has, and the client of the request that is being answered."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from homeostat.errors import Forbidden

SCOPES = ("infer", "label", "operate", "admin")
"""Ask models; send labels; load, unload, start and stop rollouts; everything."""


@dataclass(frozen=True)
class Client:
    """An authenticated client."""

    id: str
    """Of the API key, or `jwt:` and the token's client_id or subject. Stands in logs and in captured traffic."""
    scopes: frozenset[str]
    models: frozenset[str] | None = None
    """The only models that it may use; None is all."""
    expires: float = float("inf")
    """Unix time, seconds."""

    def require_scope(self, scope: str) -> None:
        """Raise Forbidden unless the client has a scope; `admin` is all of them."""
        if scope not in self.scopes and "admin" not in self.scopes:
            has = ", ".join(sorted(self.scopes)) or "none"
            raise Forbidden(f"client {self.id} lacks the scope {scope!r} (it has: {has}); ask for a key that has it")

    def may_use(self, model: str) -> bool:
        """Return whether the client may use a model."""
        return self.models is None or model in self.models

    def require_model(self, model: str) -> None:
        """Raise Forbidden unless the client may use a model."""
        if not self.may_use(model):
            raise Forbidden(f"client {self.id} may not use model {model!r:.80}; ask for a key that lists it")

    def require_all_models(self) -> None:
        """Raise Forbidden when the client is limited to some models."""
        if self.models is not None:
            raise Forbidden(f"client {self.id} is limited to some models; this needs a key without such a limit")


current: ContextVar[Client | None] = ContextVar("client", default=None)
"""The client of the request that this task answers; None when the server asks for no key."""


def client_id() -> str | None:
    """Return the id of the client that is being answered, for capture and logs."""
    client = current.get()
    return None if client is None else client.id
