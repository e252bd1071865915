"""One worker: `python -m homeostat.serving.worker CONTROL BOX INDEX [REST [GRPC]]`, descriptors of its supervisor."""

from __future__ import annotations

import socket
import sys

from homeostat.errors import ConfigError, HomeostatError
from homeostat.serving.blackbox import BlackBox
from homeostat.serving.post import Post
from homeostat.settings import load_settings


def main(arguments: list[str]) -> int:
    """Serve with the settings of the environment; a wrong one is one line on stderr and exit code 2."""
    control, box, index, *listening = map(int, arguments)
    with socket.socket(fileno=control) as supervisor:
        post = Post(supervisor, BlackBox(box), index, [socket.socket(fileno=one) for one in listening])
        try:
            settings = load_settings()
            try:
                from homeostat.serving.server import serve
            except ModuleNotFoundError as error:
                raise ConfigError(f"the model server needs {error.name}: pip install 'homeostat[serve]'") from error
            serve(settings, post)
        except HomeostatError as error:
            sys.stderr.write(f"error: {error}\n")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
