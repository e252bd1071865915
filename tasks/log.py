"""What a flow run's log says of an error of ours: one message with fact, place and remedy, and no traceback."""

import logging
import re

from homeostat import errors
from homeostat.errors import HomeostatError

PREFECT_LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")
_OURS = "|".join(
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, HomeostatError)
)
_FINISHED = re.compile(rf"(Finished in state \w+)\(.{{1,60}}? (?:{_OURS}): ")


def speak_plainly(record: logging.LogRecord) -> bool:
    """Rewrite Prefect's record of a HomeostatError; any other record stays as it is, traceback and all."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HomeostatError):
        record.msg, record.args, record.exc_info = f"{type(error).__name__}: {error}", None, None
    elif found := _FINISHED.match(record.getMessage()):
        record.msg, record.args = found[1], None  # the state repeats the message, its line breaks escaped
    return True


def set_up() -> None:
    """Let the library's messages through to Prefect, and Prefect speak plainly."""
    logging.getLogger("homeostat").setLevel(logging.INFO)  # Prefect forwards it (extra_loggers in pyproject.toml)
    for name in PREFECT_LOGGERS:
        logging.getLogger(name).addFilter(speak_plainly)
