"""`homeostat monitor`: look at a window of live traffic by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from homeostat.commands.console import find_store, read_settings, read_time, read_version, show

if TYPE_CHECKING:
    from homeostat.records import Monitoring

# Heavy imports stand in the command: `homeostat --help` must be quick.

EXIT_CODES = {"healthy": 0, "drift": 3, "harm": 4, "inconclusive": 5}
COLORS = {"healthy": "green", "drift": "blue", "harm": "red", "inconclusive": "yellow"}
MOST = 15
"""Rows of each table; the page has all."""


@click.command()
@click.argument("project")
@click.option("--since", type=read_time, metavar="TIME", help="start  [default: monitor.window_hours before the end]")
@click.option("--until", type=read_time, metavar="TIME", help="end, for the champion of that time  [default: now]")
@click.option("--against", type=read_version, metavar="VERSION", help="compare with this version's data and answers")
@click.option("--json", "as_json", is_flag=True, help="print everything, as JSON")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="write the page here too")
@click.pass_context
def monitor(
    context: click.Context,
    project: str,
    since: datetime | None,
    until: datetime | None,
    against: int | None,
    as_json: bool,
    html: Path | None,
) -> None:
    """Look at a window of PROJECT's live traffic by hand.

    A look that ends now goes on from the evidence of the scheduled looks; one with --until or
    --against stands by itself. Nothing is decided and no evidence is moved on: that is the
    scheduled flow's. The page and its JSON are written under HOMEOSTAT_HOME/looks.

    Exit code: 0 healthy, 3 drift, 4 harm, 5 inconclusive; 1 if there was no look.
    """
    now = datetime.now(UTC)
    end = until or now
    if end > now + timedelta(minutes=1):
        raise click.BadParameter(f"{end.isoformat()} has not come yet", param_hint="--until")
    if since is not None and since >= end:
        raise click.BadParameter(f"{since.isoformat()} is not before the end, {end.isoformat()}", param_hint="--since")

    from homeostat.bundle import load_public_key, open_bundle
    from homeostat.control.windows import Windows
    from homeostat.dataset import write_artifact
    from homeostat.observation import find_live, look, write_pages
    from homeostat.project import find_project, load_project

    settings = read_settings()
    mine, config = load_project(find_project(project, settings.root), settings.root)
    store = find_store(settings)
    live = find_live(store, settings, config, until)
    windows = Windows(settings.control_url)
    goes_on = until is None and against is None
    other = open_bundle(store.bundle(config.name, against), load_public_key(settings.home)) if against else None
    folder = settings.home / "looks" / config.name / now.strftime("%Y%m%dT%H%M%S.%fZ")
    found, _ = look(
        mine,
        config,
        settings,
        live,
        workspace=folder,
        since=since,
        until=end,
        state=windows.standing(config.name, live.champion.ref.version).state if goes_on else "",
        against=other,
    )
    document, page = write_pages(mine, config, live, found, store, windows, folder, against=other)
    if html is not None:
        page = Path(write_artifact(html, page.read_bytes()).path)
    if as_json:
        click.echo(document.read_text())
    else:
        _print(found)
        click.echo(f"{page}\n{document}")
    context.exit(EXIT_CODES[found.conclusion])


def _print(found: Monitoring) -> None:
    from homeostat.monitoring.page import words

    window = found.window
    click.secho(_wrapped(words.headline(found)), bold=True, fg=COLORS[found.conclusion])
    title = f"{found.model} v{found.version}, {words.day(window.start)} to {words.day(window.end)} UTC: "
    click.echo(_wrapped(f"{title}{words.rows(window.rows)}, {window.labelled:,} labelled."))
    click.echo()
    for answer in words.answers(found, (), ())[:-1]:
        click.echo(_wrapped(f"{answer.question} {answer.text}"))
    for line in [*found.faults[:MOST], *found.notes[:MOST]]:
        click.echo(_wrapped(f"- {words.clip(line, 400)}"))
    _tables(found)


def _tables(found: Monitoring) -> None:
    from rich.table import Table
    from rich.text import Text

    from homeostat.monitoring.page import words
    from homeostat.monitoring.page.page import figure_rows, label_rows

    harm = Table("loss of", "labels", "loss", "tolerated", "detector, of its alarm", "harm since (UTC)")
    hurt = sorted(found.harm, key=lambda one: (one.name != words.ALL, not one.harmed))
    for one in [one for one in hurt if one.harmed or one.name == words.ALL][:MOST]:
        since = words.day(one.since) if one.since else "this window" if one.harmed else ""
        cells = f"{one.labels:,}", words.interval(one.loss), words.number(one.tolerated), words.detector(one), since
        harm.add_row(*(Text(cell) for cell in (words.clip(one.name, 60), *cells)))
    columns = Table("changed column", "evidence", "severity")
    for column in [column for column in words.by_severity(found.columns) if column.drifted][:MOST]:
        severity = "" if column.severity is None else words.number(column.severity)
        name, evidence = words.clip(column.column, 60), words.evidence(column).text
        columns.add_row(Text(name), Text(evidence), Text(severity))
    figures = Table("figure", "value")
    for name, value in [*figure_rows(found), *label_rows(found)][: 2 * MOST]:
        figures.add_row(Text(name), Text(value))
    for table in (harm, columns, figures):
        if table.row_count:
            show(table)


def _wrapped(text: str) -> str:
    return click.wrap_text(text, width=80, subsequent_indent="  ")
