"""The kernels of onnxruntime's CUDA provider that the graphs for CUDA use, by operator and type.

Copied by hand from onnxruntime's own sources (main, August 2026): docs/OperatorKernels.md, the table of
CUDAExecutionProvider, for what it lists, and the registrations in contrib_ops/cuda/cuda_contrib_kernels.cc for the
operators of com.microsoft and SimplifiedLayerNormalization. Only the types that concern these graphs are copied.
"""

from dataclasses import dataclass

import onnx
from onnx import TensorProto

FLOAT, BFLOAT16, INT64, INT32 = TensorProto.FLOAT, TensorProto.BFLOAT16, TensorProto.INT64, TensorProto.INT32
UINT8, BOOL = TensorProto.UINT8, TensorProto.BOOL
EITHER = {FLOAT, BFLOAT16}
SHORT = {BFLOAT16}  # of float types; float16 is never used here


@dataclass(frozen=True)
class Kernel:
    """The version it is registered from, and the types of each input; the last one goes for all that follow.

    A kernel is found only for operators of that very version: an opset whose definition is newer has none.
    `output`: the input whose type the outputs have, or the type itself.
    """

    since: int
    inputs: tuple[set[int], ...]
    output: int | str = 0


ONNX = {
    "Add": Kernel(14, (EITHER | {INT64},)),
    "Attention": Kernel(23, (EITHER,)),
    "Cast": Kernel(23, (EITHER,), "to"),
    "Concat": Kernel(13, (EITHER,)),
    "Expand": Kernel(13, (EITHER, {INT64})),
    "Gather": Kernel(13, (EITHER | {INT64}, {INT64})),
    "GatherND": Kernel(13, (EITHER, {INT64})),
    "Gelu": Kernel(20, (EITHER,)),
    "LayerNormalization": Kernel(17, (EITHER,)),
    "Mul": Kernel(14, (EITHER,)),
    "Reshape": Kernel(23, (EITHER, {INT64})),
    "RotaryEmbedding": Kernel(23, (EITHER,)),
    "ScatterND": Kernel(18, (EITHER, {INT64}, EITHER)),
    "Shape": Kernel(23, (EITHER,), "int64"),
    "SimplifiedLayerNormalization": Kernel(1, (EITHER,)),
    "Squeeze": Kernel(23, (EITHER, {INT64})),
    "Unsqueeze": Kernel(23, (EITHER, {INT64})),
}
CONTRIB = {
    "FusedMatMul": Kernel(1, (EITHER,)),
    # Query, key, value, past key, past value; then the lengths. No float32.
    "GroupQueryAttention": Kernel(1, (*[SHORT] * 5, {INT32})),
    "MatMulNBits": Kernel(1, (EITHER, {UINT8}, EITHER, {UINT8})),
    "QuickGelu": Kernel(1, (EITHER,)),
}
# (input, output) that may be one buffer, which the planner makes them when the shapes are equal word by word and the
# input is needed nowhere else.
IN_PLACE = {"GroupQueryAttention": ((3, 1), (4, 2))}
# onnxruntime takes it out of the graph when it opens it.
DROPPED = {"Identity"}


def value_types(graph: onnx.GraphProto) -> dict[str, int]:
    """The type of every value, carried from inputs and initializers through the nodes."""
    types = {each.name: each.type.tensor_type.elem_type for each in graph.input}
    types |= {each.name: each.data_type for each in graph.initializer}
    for node in graph.node:
        if node.op_type in DROPPED:
            types[node.output[0]] = types[node.input[0]]
            continue
        output = kernel(node).output
        if output == "to":
            kind = next(each.i for each in node.attribute if each.name == "to")
        else:
            kind = INT64 if output == "int64" else types[node.input[int(output)]]
        types |= dict.fromkeys(node.output, kind)
    return types


def kernel(node: onnx.NodeProto) -> Kernel:
    """The kernel of a node; KeyError where there is none."""
    return CONTRIB[node.op_type] if node.domain else ONNX[node.op_type]
