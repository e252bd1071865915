"""The one graph, as every rival loads it: BENCH_ONNX, one thread."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime as ort

options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(os.environ["BENCH_ONNX"], options, providers=["CPUExecutionProvider"])


def run(rows: np.ndarray) -> np.ndarray:
    """x [n, width] float32 -> output [n, last]."""
    return session.run(None, {"x": rows})[0]
