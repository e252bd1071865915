"""Programs of Debian's packages that a test needs beside Python's."""

from __future__ import annotations

import shutil

import pytest


def installed(name: str, package: str = "") -> pytest.MarkDecorator:
    """Skip where the program is not installed, and say what to install."""
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is missing: apt install {package or name}")
