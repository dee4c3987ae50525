"""Trained models as files that run without masklab's network: ONNX, PyTorch's exported programs, OpenVINO."""
