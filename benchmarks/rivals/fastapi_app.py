"""A bare FastAPI endpoint over onnxruntime, as usually written: a pydantic body, no more validation."""

from __future__ import annotations

import graph
import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Rows(BaseModel):
    x: list[list[float]]


def answer(rows: Rows) -> dict[str, list[list[float]]]:
    return {"output": graph.run(np.array(rows.x, np.float32)).tolist()}


@app.post("/predict")
async def predict(rows: Rows) -> dict[str, list[list[float]]]:
    return answer(rows)


@app.post("/predict_in_thread")
def predict_in_thread(rows: Rows) -> dict[str, list[list[float]]]:
    return answer(rows)
