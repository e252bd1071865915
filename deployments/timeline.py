"""The timeline that `make run` prints: stage, seconds, key figure, at 80 columns."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One stage that is over."""

    act: str
    name: str
    seconds: float
    figure: str


class Timeline:
    """Prints a line when a stage is over, and keeps it."""

    def __init__(self, console: Console) -> None:
        self.rows: list[Row] = []
        self._console, self._born, self._act = console, time.monotonic(), "everything starts"

    def elapsed(self) -> float:
        """Return the seconds since the story began."""
        return time.monotonic() - self._born

    def act(self, title: str) -> None:
        """Begin a new act."""
        self._act = title
        self._console.print(f"\n[bold]{title}[/]")

    def add(self, name: str, seconds: float, figure: str) -> None:
        """Print and keep one stage."""
        self.rows.append(Row(self._act, name, seconds, figure))
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(width=15)
        line.add_column(width=8, justify="right")
        line.add_column(ratio=1)
        line.add_row(f"  {name}", f"{seconds:6.1f} s", figure)
        self._console.print(line)

    def finish(self, candidates: Sequence[Mapping[str, Any]], urls: Mapping[str, str]) -> None:
        """Print the candidates of every version and the URLs."""
        table = Table(
            title="candidates, measured as the exported ONNX graph",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
        )
        for heading in ("", "candidate", "metric", "bytes", "p50 b1", "p50 b32", "verdict"):
            left = heading in ("", "candidate", "verdict")
            table.add_column(heading, justify="left" if left else "right", no_wrap=heading != "verdict")
        for row in candidates:
            table.add_row(*(str(row[key]) for key in ("version", "name", "metric", "bytes", "p50_1", "p50_32", "note")))
        self._console.print()
        self._console.print(table)
        for name, url in urls.items():
            self._console.print(f"  {name:8} {url}")
