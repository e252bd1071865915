"""session.run alone, in a loop: `python session_run.py GRAPH ROWS.npy SECONDS`; prints JSON."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import onnxruntime as ort

options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feed = {"x": np.load(sys.argv[2])}
times: list[float] = []
spent, until = time.process_time(), time.perf_counter() + float(sys.argv[3])
at = time.perf_counter()
while at < until:
    session.run(None, feed)
    now = time.perf_counter()
    times.append(now - at)
    at = now
spent = time.process_time() - spent
print(
    json.dumps(
        {
            "per_second": len(times) / sum(times),
            "ms": [float(one) * 1000 for one in np.quantile(times, (0.5, 0.99))],
            "cpu_us": spent / len(times) * 1e6,
        }
    )
)
