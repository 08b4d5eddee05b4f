"""A radiograph and an exported model -> a calibrated prediction. ONNX Runtime, no torch."""
