"""Does this processor multiply uint8 by int8 exactly? The package's own probe graph is run to find out.

x86 without VNNI adds pairs of products in 16 bits; the largest codes overflow there and results are silently wrong.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runtime.session import open_session

PROBE_SHAPE = (4, 64, 16)  # rows, width, columns
ACTIVATION_CODE, WEIGHT_CODE = 255, 127


def products_are_exact(probe: Path, providers: Sequence[str]) -> bool:
    """Run probe.onnx (export/probe.py) on the largest codes and compare with the integer result."""
    rows, width, _ = PROBE_SHAPE
    codes = np.full((rows, width), ACTIVATION_CODE, np.uint8)
    product = open_session(probe, providers, threads=1).run(["product"], {"codes": codes})[0]
    return bool((product == np.float32(ACTIVATION_CODE * WEIGHT_CODE * width)).all())
