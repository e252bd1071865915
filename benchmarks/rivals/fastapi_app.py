"""A bare FastAPI endpoint over onnxruntime, as usually written: a pydantic body, `async def`, no more validation."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI
from pydantic import BaseModel

options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(os.environ["BENCH_ONNX"], options, providers=["CPUExecutionProvider"])
app = FastAPI()


class Rows(BaseModel):
    x: list[list[float]]


@app.post("/predict")
async def predict(rows: Rows) -> dict[str, list[list[float]]]:
    return {"output": session.run(None, {"x": np.array(rows.x, np.float32)})[0].tolist()}
