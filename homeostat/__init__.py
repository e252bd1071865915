"""Keep models in production healthy: drift, late labels and paired statistics decide to promote, hold or roll back."""

import os

__version__ = "0.1.0"

# Read by ONNX Runtime at its import: else it gives the machine an id, and queues events for Microsoft in ~/.cache.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
