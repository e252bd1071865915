"""`python -m homeostat.serving`: the server with the settings of the environment."""

from __future__ import annotations

import sys

from homeostat.errors import HomeostatError
from homeostat.serving.server import serve
from homeostat.settings import load_settings


def main() -> int:
    """Serve; a wrong setting is one line on stderr and exit code 2."""
    try:
        serve(load_settings())
    except HomeostatError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
