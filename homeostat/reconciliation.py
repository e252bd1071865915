"""MLflow is made to show what the control store says: after a crash between the two, or a change by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from homeostat.control.store import ControlStore
    from homeostat.registry import Registry


def reconcile(store: ControlStore, registry: Registry, model: str, actor: str) -> list[str]:
    """Let a model's aliases mirror its rollout row, and anchor the ledger; return one line for each repair.

    Repairs stand in the ledger. Raises NotFound without the model, RegistryUnavailable.
    """
    repairs = registry.mirror(store.row(model), store.head())
    if repairs:
        store.record(model, "reconcile", actor=actor, reason="; ".join(repairs), evidence={"repairs": repairs})
        registry.anchor(model, store.head())
    return repairs
