"""Demonstrations, training and ONNX export of robotd policy bundles."""
