"""One ONNX graph under construction: operators, small constants, and weights that stream to a data file.

Weights are declared while the graph is built (name, dtype, shape, where its blocks come from) and written afterwards,
one block at a time, so the exact size on disk is known before a byte is written.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import GraphProto, NodeProto, StringStringEntryProto, TensorProto, ValueInfoProto, helper

from quant.kernels import NUMPY_DTYPES
from runtime.version import VERSION

OPSET = 23
CONTRIB = "com.microsoft"
IR_VERSION = 11
# Page alignment lets every larger weight be mapped and used in place.
PAGE, LINE = 4096, 64

Shape = Sequence[int | str]  # a string is a free dimension
Blocks = Callable[[], Iterator[np.ndarray]]
ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "bfloat16": TensorProto.BFLOAT16,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
}


@dataclass(eq=False)
class Value:
    """What an operator takes or gives. `dtype` and `shape` are known where they were declared."""

    name: str
    dtype: str = ""
    shape: Shape = ()

    def proto(self) -> ValueInfoProto:
        """As the model file declares it."""
        return helper.make_tensor_value_info(self.name, ELEMENT_TYPES[self.dtype], self.shape)


@dataclass(frozen=True, eq=False)
class Node:
    """One operator. Values are held, not their names, so that a later name holds for all."""

    name: str
    operator: str
    domain: str
    inputs: Sequence[Value | None]
    outputs: Sequence[Value]
    attributes: Mapping[str, object]

    def proto(self) -> NodeProto:
        """As the model file has it."""
        inputs = [value.name if value else "" for value in self.inputs]
        outputs = [value.name for value in self.outputs]
        node = helper.make_node(self.operator, inputs, outputs, self.name, domain=self.domain or None)
        for name, value in self.attributes.items():
            node.attribute.append(helper.make_attribute(name, value.proto() if isinstance(value, Body) else value))
        return node


@dataclass(frozen=True, eq=False)
class Body:
    """What an operator does with each piece of its inputs: a graph within the graph, which may use values around it."""

    inputs: Sequence[Value]
    nodes: Sequence[Node]
    output: Value

    def proto(self) -> GraphProto:
        """As the operator's attribute has it."""
        inputs = [value.proto() for value in self.inputs]
        nodes = [node.proto() for node in self.nodes]
        return helper.make_graph(nodes, "body", inputs, [self.output.proto()])


@dataclass(frozen=True)
class Weight:
    """A declared weight: `nbytes` at `offset` of the data file, produced by `blocks()` in order."""

    name: str
    dtype: str
    nbytes: int
    offset: int
    blocks: Blocks


class Graph:
    """Builds one model file `name` and its data file `name.data`.

    With a `lender`, a graph already written, the weights are those of the same names in the lender's data file.
    """

    def __init__(self, name: str, lender: "Graph | None" = None):
        self.name = name
        self.weights: dict[str, Weight] = {}
        self._lender = lender
        self._inputs: list[Value] = []
        self._outputs: list[Value] = []
        self._declared: list[Value] = []
        self._nodes: list[Node] = []
        self._count = 0  # of nodes, those in bodies included
        self._initializers: list[TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Value] = {}

    @property
    def data_name(self) -> str:
        """Name of the data file beside the model file."""
        return self._lender.data_name if self._lender else f"{self.name}.data"

    @property
    def data_bytes(self) -> int:
        """Size of the data file once written."""
        last = next(reversed(self.weights.values()), None)
        return last.offset + last.nbytes if last else 0

    def input(self, name: str, dtype: str, shape: Shape) -> Value:
        """A graph input."""
        value = Value(name, dtype, shape)
        self._inputs.append(value)
        return value

    def output(self, name: str, value: Value, dtype: str, shape: Shape) -> None:
        """Make `value` a graph output called `name`."""
        value.name, value.dtype, value.shape = name, dtype, shape
        self._outputs.append(value)

    def declare(self, value: Value, dtype: str, shape: Shape) -> None:
        """Say what `value` is, for an operator whose output onnxruntime infers otherwise."""
        value.dtype, value.shape = dtype, shape
        self._declared.append(value)

    def op(self, operator: str, *inputs: Value | None, domain: str = "", **attributes: object) -> Value:
        """Append `operator` with one output; keyword arguments are the operator's attributes."""
        return self.op_many(operator, inputs, 1, domain, attributes)[0]

    def op_many(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        num_outputs: int,
        domain: str = "",
        attributes: Mapping[str, object] | None = None,
    ) -> Sequence[Value]:
        """Append `operator` with several outputs."""
        name = f"{operator}_{self._count}"
        self._count += 1
        outputs = [Value(f"{name}:{index}") for index in range(num_outputs)]
        self._nodes.append(Node(name, operator, domain, inputs, outputs, attributes or {}))
        return outputs

    def scan(self, body: Callable[..., Value], inputs: Sequence[Value], dtype: str, piece: Shape) -> Value:
        """`body` of each piece along axis 0 of `inputs`, all pieces of that type and shape → its results, stacked.

        Weights are declared outside of it all the same: onnxruntime would keep those of a body after prepacking them.
        """
        outside, self._nodes = self._nodes, []
        pieces = [Value(f"piece_{self._count}:{index}", dtype, piece) for index in range(len(inputs))]
        output = body(*pieces)
        output.dtype, output.shape = dtype, piece
        content, self._nodes = Body(pieces, self._nodes, output), outside
        return self.op("Scan", *inputs, body=content, num_scan_inputs=len(inputs))

    def constant(self, content: np.ndarray) -> Value:
        """A small constant kept inside the model file (shapes, indices, scalars); equal ones are shared."""
        key = (content.dtype.name, content.shape, content.tobytes())
        if key not in self._constants:
            value = Value(f"constant_{len(self._constants)}")
            element_type = ELEMENT_TYPES[content.dtype.name]
            tensor = helper.make_tensor(value.name, element_type, content.shape, content.tobytes(), raw=True)
            self._initializers.append(tensor)
            self._constants[key] = value
        return self._constants[key]

    def weight(self, name: str, dtype: str, shape: Sequence[int], blocks: Blocks) -> Value:
        """Declare an initializer in the data file; `blocks()` yields its content in order, along axis 0."""
        if name in self.weights:
            raise AssertionError(f"initializer {name} declared twice")
        nbytes = int(np.prod(shape, dtype=np.int64) * numpy_dtype(dtype).itemsize)
        weight = self._lender.weights[name] if self._lender else self._placed(name, dtype, nbytes, blocks)
        if (weight.dtype, weight.nbytes) != (dtype, nbytes):
            raise AssertionError(f"{name} was written as {weight.nbytes} bytes of {weight.dtype}")
        self.weights[name] = weight
        place = {"location": self.data_name, "offset": weight.offset, "length": nbytes}
        tensor = TensorProto(
            name=name,
            data_type=ELEMENT_TYPES[dtype],
            dims=shape,
            data_location=TensorProto.EXTERNAL,
            external_data=[StringStringEntryProto(key=key, value=str(each)) for key, each in place.items()],
        )
        self._initializers.append(tensor)
        return Value(name)

    def _placed(self, name: str, dtype: str, nbytes: int, blocks: Blocks) -> Weight:
        """After the weights so far, aligned."""
        alignment = PAGE if nbytes >= PAGE else LINE
        return Weight(name, dtype, nbytes, -(-self.data_bytes // alignment) * alignment, blocks)

    def write(self, folder: Path, progress: Callable[[int], object]) -> None:
        """Write the model file and stream the data file into `folder`; `progress` gets bytes as they are written."""
        if self._lender is not None:
            raise AssertionError(f"{self.name} has no data file of its own")
        with (folder / self.data_name).open("wb") as file:
            for weight in self.weights.values():
                file.write(bytes(weight.offset - file.tell()))
                dtype = numpy_dtype(weight.dtype)
                for block in weight.blocks():
                    content = np.ascontiguousarray(block, dtype=dtype)
                    file.write(content.view(np.uint8).reshape(-1).data)
                    progress(content.nbytes)
                if file.tell() != weight.offset + weight.nbytes:
                    raise AssertionError(f"{weight.name} wrote {file.tell() - weight.offset} of {weight.nbytes} bytes")
        self.write_model(folder)

    def write_model(self, folder: Path) -> None:
        """Write the model file alone: all there is of a graph without declared weights."""
        graph = helper.make_graph(
            [node.proto() for node in self._nodes],
            self.name.removesuffix(".onnx"),
            [value.proto() for value in self._inputs],
            [value.proto() for value in self._outputs],
            self._initializers,
            value_info=[value.proto() for value in self._declared if value not in self._outputs],
        )
        model = helper.make_model(
            graph,
            ir_version=IR_VERSION,
            producer_name="qwen3vl-edge",
            producer_version=VERSION,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)],
        )
        (folder / self.name).write_bytes(model.SerializeToString(deterministic=True))


def numpy_dtype(dtype: str) -> np.dtype:
    """numpy's own, or ml_dtypes' for what numpy lacks."""
    return NUMPY_DTYPES[dtype] if dtype in NUMPY_DTYPES else np.dtype(dtype)
