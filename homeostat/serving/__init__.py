"""The model server: data plane, sessions, Open Inference Protocol, capture."""
