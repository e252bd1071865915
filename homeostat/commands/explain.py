"""`homeostat explain`: one decision of the ledger, its evidence, and whether the same evidence decides it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from homeostat.commands.console import find_store, read_settings, short_time
from homeostat.errors import DataInvalid, NotFound


@click.command()
@click.argument("decision", type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True, help="print the whole entry, as JSON")
def explain(decision: int, as_json: bool) -> None:
    """Show DECISION, an entry of the ledger by its number: what was decided, why, and on what evidence.

    What the policy decided (retraining, promotion, rollback) is computed again from its evidence and the settings of
    that time.
    `homeostat history MODEL` has the numbers.
    """
    from dataclasses import asdict

    entries = find_store(read_settings()).history()
    entry = next((one for one in entries if one.sequence == decision), None)
    if entry is None:
        raise NotFound(f"the ledger has no entry {decision}; it has 1 to {len(entries)}")
    if as_json:
        click.echo(json.dumps(asdict(entry), indent=1))
        return
    version = f" v{entry.version}" if entry.version else ""
    click.secho(f"{entry.sequence}: {entry.action} of {entry.model}{version}, {short_time(entry.time)} UTC", bold=True)
    click.echo(_wrapped(f"by {entry.actor}, generation {entry.generation}"))
    click.echo(_wrapped(f"because: {entry.reason}"))
    for name, value in _flat(entry.evidence):
        click.echo(_wrapped(f"  {name} = {value}", "    "))
    for line in _again(entry.evidence):
        click.echo(_wrapped(line))


def _again(evidence: Mapping[str, Any]) -> list[str]:
    """Return the rule that decided, and whether it decides so again."""
    from homeostat.policy.again import decide_again

    inner = evidence.get("evidence", evidence)
    try:
        again = decide_again(inner) if isinstance(inner, Mapping) else None
    except DataInvalid as error:
        return [f"It cannot be computed again: {error}"]
    if again is None:
        return ["No rule of the policy decided this: it is not computed again."]
    verdict, rule = again
    same = verdict.kind == evidence.get("kind", evidence.get("verdict"))
    if same and list(verdict.reasons) == list(evidence.get("reasons") or ()):
        return [f"rule: {rule}", f"The same evidence decides it again: {verdict.kind}."]
    return [f"rule: {rule}", f"The same evidence now decides otherwise: {verdict.kind}: {'; '.join(verdict.reasons)}."]


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Return dotted names and values, the reasons left out: they stand above."""
    if isinstance(value, Mapping):
        return [
            one
            for key, item in value.items()
            if key not in ("reasons", "kind", "verdict")
            for one in _flat(item, f"{name}.{key}".removeprefix(".").removeprefix("evidence."))
        ]
    return [(name, json.dumps(value, ensure_ascii=False))]


def _wrapped(text: str, indent: str = "  ") -> str:
    return click.wrap_text(text, width=80, subsequent_indent=indent)
