"""From Keras to the ONNX graph that is served, and the gates that it must pass."""
