"""One server in a HOME: a lock on a file there, which its supervisor holds for as long as it lives."""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path

from homeostat.errors import ConfigError

log = logging.getLogger(__name__)

FILE = ".lock"


def occupy(home: Path) -> int | None:
    """Return a descriptor that keeps HOME from other servers until all its copies are closed.

    Two would write over each other's evidence of a rollout, and each would take the other's for
    that of a server that was killed. None where no file can be locked: what cannot be written
    there cannot be spoiled either. Raises ConfigError when HOME cannot be made, or has a server.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"HOMEOSTAT_HOME={home} cannot be made: {error.strerror}; name a folder that this user may write"
        ) from error
    folder = home / "serving"
    try:
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        log.warning("%s cannot be locked (%s); let no other server use this HOME", folder, error)
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise ConfigError(
                f"another server uses HOMEOSTAT_HOME={home}; stop it, or give this one a HOME of its own "
                "(HOMEOSTAT_WORKERS makes one server larger)"
            ) from error
        log.warning("%s cannot be locked (%s); let no other server use this HOME", folder, error)
        return None
    return descriptor
