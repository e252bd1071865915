"""One stage a file: a thin Prefect task around one library call."""

import logging

logging.getLogger("homeostat").setLevel(logging.INFO)  # Prefect forwards it (extra_loggers in pyproject.toml)
