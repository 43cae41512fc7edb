"""A product whose exact result is known, shipped with int8 packages: it shows whether a processor saturates.

x86 without VNNI adds two uint8 × int8 products in 16 bits. The largest codes then overflow, and vectors would be wrong
without a sign of it; running the very operator is a surer test than a list of processors.
"""

import numpy as np

from export.graph import CONTRIB, Graph
from runtime.manifest import PROBE
from runtime.probe import PROBE_SHAPE, WEIGHT_CODE


def build_probe() -> Graph:
    """codes uint8 [M,K] → product float32 [M,N] with weights that are all WEIGHT_CODE."""
    rows, width, columns = PROBE_SHAPE
    graph = Graph(PROBE)
    codes = graph.input("codes", "uint8", [rows, width])
    weights = graph.constant(np.full((width, columns), WEIGHT_CODE, np.int8))
    one = graph.constant(np.array(1, np.float32))
    scales = graph.constant(np.ones(columns, np.float32))
    zero = graph.constant(np.array(0, np.uint8))
    product = graph.op("MatMulIntegerToFloat", codes, weights, one, scales, zero, domain=CONTRIB)
    graph.output("product", product, "float32", [rows, columns])
    return graph
