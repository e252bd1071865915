"""Log records as JSON lines on stderr, in the field names of the Elastic Common Schema."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from homeostat import __version__
from homeostat.serving.exchange import current

ECS_VERSION = "8.11.0"
SERVICE = {"service.name": "homeostat", "service.type": "homeostat", "service.version": __version__}


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "@timestamp": time.replace("+00:00", "Z"),
            "log.level": record.levelname.lower(),
            "log.logger": record.name,
            "message": record.getMessage(),
            "ecs.version": ECS_VERSION,
            "event.dataset": "homeostat.server",
            "process.pid": record.process,
            **SERVICE,
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error.type"] = record.exc_info[0].__name__
            line["error.message"] = str(record.exc_info[1])
            line["error.stack_trace"] = self.formatException(record.exc_info)
        exchange = current.get()
        if exchange is not None and exchange.trace_id:
            line["trace.id"] = exchange.trace_id
        return json.dumps(line)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send every logger's records to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # its warnings are a line for each bad request
