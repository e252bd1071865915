"""`python -m homeostat.serving`: the server with the settings of the environment."""

import sys

from homeostat.serving.supervisor import supervise

if __name__ == "__main__":
    sys.exit(supervise())
