"""The model files of a package, read with onnx."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

# What onnx calls the types of a data file, and numpy; bfloat16 as its bits.
NUMPY: dict[int, np.dtype[Any]] = {
    onnx.TensorProto.FLOAT: np.dtype(np.float32),
    onnx.TensorProto.FLOAT16: np.dtype(np.float16),
    onnx.TensorProto.BFLOAT16: np.dtype(np.uint16),
}


def load(folder: Path, name: str) -> onnx.ModelProto:
    """A model file without its weights."""
    return onnx.load(folder / name, load_external_data=False)


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph, each followed by those of its body."""
    for node in graph.node:
        yield node
        for body in bodies(node):
            yield from every_node(body)


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graph within a Scan, if it is one."""
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in every_node(model.graph))


def nodes(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in every_node(model.graph) if node.op_type == kind]


def external(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """Data file, offset and length in bytes."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    return place["location"], int(place["offset"]), int(place["length"])


def weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [each for each in model.graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL]


def constants(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [each for each in model.graph.initializer if each.data_location == onnx.TensorProto.DEFAULT]


def dimensions(value: onnx.ValueInfoProto) -> list[int | str]:
    return [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim]


def stored(folder: Path, name: str) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every weight of a data file under its name."""
    raw = (folder / f"{name}.data").read_bytes()
    for weight in weights(load(folder, name)):
        _, offset, length = external(weight)
        yield weight.name, np.frombuffer(raw[offset : offset + length], NUMPY[weight.data_type]).reshape(weight.dims)
