"""From a checkpoint to an ONNX package: `python -m export --model ...`. Needs no torch."""
