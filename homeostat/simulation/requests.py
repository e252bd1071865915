"""Requests of the Open Inference Protocol v2 from rows of a dataset, as binary tensors: JSON has no NaN."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from homeostat.dataset import Array
from homeostat.tensors import datatype_of


def infer_request(inputs: Mapping[str, Array], entity_id: str) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request for these rows. inputs: name -> array [n, ...] of numbers."""
    tensors = {name: values.astype(values.dtype.newbyteorder("<")).tobytes() for name, values in inputs.items()}
    head: dict[str, Any] = {
        "parameters": {"entity_id": entity_id},
        "inputs": [
            {
                "name": name,
                "shape": list(values.shape),
                "datatype": datatype_of(values.dtype),
                "parameters": {"binary_data_size": len(tensors[name])},
            }
            for name, values in inputs.items()
        ],
    }
    text = json.dumps(head).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(text))}
    return b"".join([text, *tensors.values()]), headers
