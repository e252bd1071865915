"""Anchors: MLflow remembers how far the ledger went, and `ledger verify` holds it to that."""

from __future__ import annotations

import pytest

from homeostat.errors import NotFound, RegistryError
from homeostat.records import BundleRef, LedgerHead, Rollout
from homeostat.registry.anchors import TAG

FIRST, SECOND = LedgerHead(3, "a" * 64), LedgerHead(7, "b" * 64)


def test_the_later_end_is_remembered(registry, client, model, parts):
    registry.register(registry.start_run(model, "p1"), **parts)
    assert registry.anchors() == []
    row = Rollout(model, 1, BundleRef(model, 1, "", "", ""), None, None, "")
    assert registry.mirror(row, FIRST) == [f"@champion of {model}: nothing -> v1"]
    assert registry.anchors() == [FIRST]
    registry.anchor(model, SECOND)
    registry.anchor(model, FIRST)
    assert registry.anchors() == [SECOND]
    assert client.get_registered_model(model).tags[TAG] == f"7:{'b' * 64}"


def test_what_is_no_anchor(registry, client, model, parts):
    with pytest.raises(NotFound, match="no registered model 'nobody'"):
        registry.anchor("nobody", FIRST)
    registry.register(registry.start_run(model, "p1"), **parts)
    client.set_registered_model_tag(model, TAG, "7")
    for ask in (registry.anchors, lambda: registry.anchor(model, FIRST)):
        with pytest.raises(RegistryError, match="edited by hand"):
            ask()
    client.delete_registered_model_tag(model, TAG)
