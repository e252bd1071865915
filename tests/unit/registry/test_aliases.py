"""MLflow's aliases mirror the rollout row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from homeostat.errors import NotFound
from homeostat.records import BundleRef, Rollout


def test_aliases_mirror_the_row(registry, client, model, parts):
    for number in (1, 2):
        assert registry.register(registry.start_run(model, f"p{number}"), **parts) == number

    def ref(version: int) -> BundleRef:
        return BundleRef(model, version, "", "", "")

    row = Rollout(model, 1, ref(1), ref(2), None, "")
    repairs = [f"@champion of {model}: nothing -> v1", f"@challenger of {model}: nothing -> v2"]
    assert registry.project_aliases(row) == repairs
    assert registry.project_aliases(row) == []
    assert registry.aliases(model) == {"champion": 1, "challenger": 2}
    client.set_registered_model_alias(model, "champion", "2")
    client.set_registered_model_alias(model, "mine", "1")
    row = replace(row, challenger=None)
    assert registry.project_aliases(row) == [
        f"@champion of {model}: v2 -> v1",
        f"@challenger of {model}: v2 -> nothing",
    ]
    assert registry.aliases(model) == {"champion": 1, "mine": 1}
    with pytest.raises(NotFound, match=r"has no .* v9 for @champion"):
        registry.project_aliases(replace(row, champion=ref(9)))
    with pytest.raises(NotFound, match="no registered model 'nobody'"):
        registry.aliases("nobody")
