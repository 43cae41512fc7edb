"""Builds runtime/graphs/probe.onnx, a product whose exact result is known: `python -m export.probe` writes it anew."""

import numpy as np

from export.graph import CONTRIB, Graph
from runtime.graphs.probe import PROBE, PROBE_SHAPE, WEIGHT_CODE


def build_probe() -> Graph:
    """codes uint8 [M,K] → float32 [M,N]: `stored` with weights that are all WEIGHT_CODE, `given` with int8 [K,N]."""
    rows, width, columns = PROBE_SHAPE
    graph = Graph(PROBE.name)
    codes = graph.input("codes", "uint8", [rows, width])
    given = graph.input("weights", "int8", [width, columns])
    stored = graph.constant(np.full((width, columns), WEIGHT_CODE, np.int8))
    one = graph.constant(np.array(1, np.float32))
    scales = graph.constant(np.ones(columns, np.float32))
    zero = graph.constant(np.array(0, np.uint8))
    for name, weights in (("stored", stored), ("given", given)):
        product = graph.op("MatMulIntegerToFloat", codes, weights, one, scales, zero, domain=CONTRIB)
        graph.output(name, product, "float32", [rows, columns])
    return graph


if __name__ == "__main__":
    build_probe().write_model(PROBE.parent)
