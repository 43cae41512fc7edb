"""One ONNX graph under construction: operators, small constants, and weights that stream to a data file.

The only importer of onnx_ir. Weights are declared while the graph is built (name, dtype, shape, where its blocks
come from) and written afterwards, one block at a time, so the exact size on disk is known before a byte is written.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from quant.kernels import NUMPY_DTYPES
from runtime.version import VERSION

OPSET = 23
CONTRIB = "com.microsoft"
IR_VERSION = 11
# Page alignment lets every larger weight be mapped and used in place.
PAGE, LINE = 4096, 64

Value = ir.Value
Blocks = Callable[[], Iterator[np.ndarray]]
DTYPES = {
    "float32": ir.DataType.FLOAT,
    "bfloat16": ir.DataType.BFLOAT16,
    "float16": ir.DataType.FLOAT16,
    "int64": ir.DataType.INT64,
    "int32": ir.DataType.INT32,
    "bool": ir.DataType.BOOL,
    "int8": ir.DataType.INT8,
    "uint8": ir.DataType.UINT8,
}


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
        self._graph = ir.Graph([], [], nodes=[], name=name.removesuffix(".onnx"), opset_imports={"": OPSET, CONTRIB: 1})
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

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> Value:
        """A graph input; strings in `shape` are free dimensions."""
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(DTYPES[dtype]))
        self._graph.inputs.append(value)
        return value

    def output(self, name: str, value: Value, dtype: str, shape: Sequence[int | str]) -> None:
        """Make `value` a graph output called `name`."""
        value.name = name
        self.declare(value, dtype, shape)
        self._graph.outputs.append(value)

    def declare(self, value: Value, dtype: str, shape: Sequence[int | str]) -> None:
        """Say what `value` is, for an operator whose output onnxruntime infers otherwise."""
        value.shape, value.type = ir.Shape(shape), ir.TensorType(DTYPES[dtype])

    def op(self, operator: str, *inputs: Value | None, domain: str = "", **attributes: ir.Attr | object) -> Value:
        """Append `operator` with one output; keyword arguments are the operator's attributes."""
        return self.op_many(operator, inputs, 1, domain, attributes)[0]

    def op_many(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        num_outputs: int,
        domain: str = "",
        attributes: dict[str, object] | None = None,
    ) -> Sequence[Value]:
        """Append `operator` with several outputs."""
        node = ir.Node(
            domain,
            operator,
            inputs,
            ir.convenience.convert_attributes(attributes or {}),  # type: ignore[arg-type]
            num_outputs=num_outputs,
            name=f"{operator}_{len(self._graph)}",
        )
        for index, value in enumerate(node.outputs):
            value.name = f"{node.name}:{index}"
        self._graph.append(node)
        return node.outputs

    def constant(self, content: np.ndarray) -> Value:
        """A small constant kept inside the model file (shapes, indices, scalars); equal ones are shared."""
        key = (content.dtype.name, content.shape, content.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            value = ir.Value(name=name, const_value=ir.tensor(content, name=name))
            value.shape, value.type = ir.Shape(content.shape), ir.TensorType(DTYPES[content.dtype.name])
            self._graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def weight(self, name: str, dtype: str, shape: Sequence[int], blocks: Blocks) -> Value:
        """Declare an initializer in the data file; `blocks()` yields its content in order, along axis 0."""
        if name in self.weights:
            raise AssertionError(f"initializer {name} declared twice")
        kind = DTYPES[dtype]
        nbytes = int(np.prod(shape, dtype=np.int64) * kind.itemsize)
        weight = self._lender.weights[name] if self._lender else self._placed(name, dtype, nbytes, blocks)
        if (weight.dtype, weight.nbytes) != (dtype, nbytes):
            raise AssertionError(f"{name} was written as {weight.nbytes} bytes of {weight.dtype}")
        self.weights[name] = weight
        tensor = ir.ExternalTensor(self.data_name, weight.offset, nbytes, kind, shape=ir.Shape(shape), name=name)
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(kind), const_value=tensor)
        self._graph.register_initializer(value)
        return value

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
                dtype = NUMPY_DTYPES.get(weight.dtype, weight.dtype)
                for block in weight.blocks():
                    content = np.ascontiguousarray(block, dtype=dtype)
                    file.write(content.view(np.uint8).reshape(-1).data)
                    progress(content.nbytes)
                if file.tell() != weight.offset + weight.nbytes:
                    raise AssertionError(f"{weight.name} wrote {file.tell() - weight.offset} of {weight.nbytes} bytes")
        self.write_model(folder)

    def write_model(self, folder: Path) -> None:
        """Write the model file alone: all there is of a graph without declared weights."""
        model = ir.Model(self._graph, ir_version=IR_VERSION, producer_name="qwen3vl-edge", producer_version=VERSION)
        ir.save(model, folder / self.name)
