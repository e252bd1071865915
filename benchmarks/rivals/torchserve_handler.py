"""The same graph as a TorchServe handler."""

from __future__ import annotations

from typing import Any

import numpy as np


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[dict[str, Any]] | None:
    """One request at a time (batch size 1); none when the model is loaded."""
    import graph

    if data is None:
        return None
    rows = np.array(data[0]["body"]["x"], np.float32)
    return [{"output": graph.run(rows).tolist()}]
