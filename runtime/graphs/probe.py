"""Does this processor multiply uint8 by int8 exactly? A product whose result is known is run to find out.

x86 without VNNI adds pairs of products in 16 bits: the largest codes overflow there, and vectors would be wrong without
a sign of it. Running the very operator is a surer test than a list of processors. probe.onnx is what export/probe.py
builds; it multiplies by weights stored in it, and by the same weights given to it.
"""

from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort

PROBE = Path(__file__).with_name("probe.onnx")
PROBE_SHAPE = (4, 64, 16)  # rows, width, columns
ACTIVATION_CODE, WEIGHT_CODE = 255, 127


def let_weights_become_uint8(options: ort.SessionOptions) -> None:
    """Let onnxruntime store int8 weights as uint8, whose kernel is exact everywhere and half as fast with VNNI.

    That belongs to an optimiser of the extended level.
    """
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED


@cache
def products_saturate() -> bool:
    """Whether products are inexact as onnxruntime comes: x86 without VNNI."""
    return not all(_exact(ort.SessionOptions(), name) for name in ("stored", "given"))


@cache
def stored_weights_are_exact() -> bool:
    """Whether products with weights of a package are exact, as the runtime opens it."""
    options = ort.SessionOptions()
    if products_saturate():
        let_weights_become_uint8(options)
    return _exact(options, "stored")


def _exact(options: ort.SessionOptions, name: str) -> bool:
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    rows, width, columns = PROBE_SHAPE
    feeds = {
        "codes": np.full((rows, width), ACTIVATION_CODE, np.uint8),
        "weights": np.full((width, columns), WEIGHT_CODE, np.int8),
    }
    session = ort.InferenceSession(str(PROBE), options, providers=["CPUExecutionProvider"])
    product = session.run([name], feeds)[0]
    return bool((product == np.float32(ACTIVATION_CODE * WEIGHT_CODE * width)).all())
