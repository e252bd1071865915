"""Prometheus' own checker, from Debian's package `prometheus`; a test that needs it is skipped where it is missing."""

from __future__ import annotations

import shutil
import subprocess

import pytest

PATH = shutil.which("promtool")
needed = pytest.mark.skipif(PATH is None, reason="promtool is not installed: apt install prometheus")


def check(*arguments: str, stdin: str | None = None) -> str:
    """Run promtool; return what it says, and fail unless it is content."""
    assert PATH is not None
    done = subprocess.run([PATH, *arguments], input=stdin, capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said
