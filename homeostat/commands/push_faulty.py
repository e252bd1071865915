"""`homeostat push-faulty`: a version that is faulty on purpose, to see the guards and the rollback at work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from homeostat.commands.console import find_store, read_settings

if TYPE_CHECKING:
    from homeostat.config import Strategy
    from homeostat.simulation.versions import VersionFault

# Heavy imports stand in the command: `homeostat --help` must be quick.


KINDS = ["bad", "subtle", "slow", "corrupted"]
STRATEGIES = ["shadow", "canary", "shadow+canary"]
FAULTS = """\b
FAULT is one of
  bad        every answer is wrong
  subtle     the answers to at most 15 % of the rows are
  slow       right, and many times slower
  corrupted  a byte of the bundle was changed behind its signature"""


@click.command(epilog=FAULTS)
@click.argument("project")
@click.argument("fault", type=click.Choice(KINDS))
@click.option("--strategy", type=click.Choice(STRATEGIES), help="of its rollout  [default: rollout.strategy]")
def push_faulty(project: str, fault: VersionFault, strategy: Strategy | None) -> None:
    """Register a version of PROJECT's champion with a FAULT, past all gates, and print its number.

    No traffic goes to it until you ask for that: `homeostat rollout start` or `homeostat promote`. Only for a place
    where a bad answer costs nothing.
    """
    from homeostat.project import find_project, load_project
    from homeostat.simulation.versions import push_version

    settings = read_settings()
    _, config = load_project(find_project(project, settings.root), settings.root)
    made = push_version(config, settings, find_store(settings), fault, strategy)
    click.echo(f"{made.model} v{made.version} is {fault}; nothing is sent to it yet", err=True)
    click.echo(made.version)
