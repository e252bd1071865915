"""Save the same graph as an MLflow model: `python mlflow_model.py GRAPH FOLDER`."""

from __future__ import annotations

import sys

import mlflow.onnx
import onnx

mlflow.onnx.save_model(
    onnx.load(sys.argv[1]), sys.argv[2], save_as_external_data=False, pip_requirements=["onnxruntime"]
)
