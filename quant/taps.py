"""A package run one prompt at a time with the inside of its graphs readable: matrix outputs and hidden states.

The .onnx files get further outputs in memory, the weights stay where they are. Only some rows of a value leave the
graph, so the memory of a run is hardly larger than without.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from quant.losses import HIDDEN
from quant.prompts import Prompt
from quant.selection import DECODER
from runtime.errors import PackageError
from runtime.extras import needing_extra
from runtime.graphs.graph import NOWHERE, Arrays, SessionGraph
from runtime.graphs.model import Model
from runtime.graphs.session import create_session, default_threads, require_providers, session_options
from runtime.manifest import Manifest

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

OUTPUT, START, STEP = ":output", "tap:start", "tap:step"
TOKENS = "tokens"  # an output of the vision graph
LAYERS = f"{DECODER}layers."
EVERY_TOKEN = ("k_proj.weight", "v_proj.weight")  # of the last layer, too
# A product that a norm follows comes without the token's scale: int8-per-token's ends with the first of these, that of
# int4-two-level with the second.
UNSCALED_OPERATORS = ("MatMulIntegerToFloat", "Reshape")
PATCH_ROWS = 4  # patches read for each token: pictures are fewer than texts, and their values smaller


@dataclass(eq=False)
class TappedGraph:
    """An open graph that reads some rows of every value inside on its way.

    `values` are what can be read, matrices by their checkpoint names; `wanted` rows of each are appended to `rows` at
    every run, spread over all of them and the last one first. `pooled` are those of the last token alone, which the
    last layer computes twice: one row of them counts.
    """

    graph: SessionGraph
    values: tuple[str, ...]
    unscaled: frozenset[str]
    pooled: frozenset[str]
    is_vision: bool
    wanted: int = 0
    rows: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def run(self, names: Sequence[str], feeds: Arrays, into: Arrays = NOWHERE) -> list[np.ndarray]:
        """As `Graph.run`."""
        # Behind a prompt's own rows there may be padding.
        available = int(np.prod(feeds["patches"].shape[:2]) if self.is_vision else feeds["token_mask"].sum())
        start, step = np.array([available - 1]), np.array([-max(1, -(-available // max(self.wanted, 1)))])
        values = self.values if self.wanted else ()
        outputs = self.graph.run([*names, *map(_rows_name, values)], {**feeds, START: start, STEP: step}, into)
        for name, value in zip(values, outputs[len(names) :], strict=True):
            self.rows.setdefault(name, []).append(value[:1] if name in self.pooled else value)
        return list(outputs[: len(names)])


class TappedPackage:
    """One package; `rows` collects those of every value, a list entry for each run of the graph it is in.

    Raises PackageError for a package without names for its hidden states, MissingExtraError without onnx.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self._graphs: list[TappedGraph] = []
        self._wanted = 0
        providers = require_providers(None, manifest.target, folder)
        self._model = Model(folder, manifest, providers, default_threads(), self._opened)

    @property
    def rows(self) -> dict[str, list[np.ndarray]]:
        """Rows [n, N] of every value so far, in the order of the graphs, those of the vision encoder first."""
        return {name: rows for graph in reversed(self._graphs) for name, rows in graph.rows.items()}

    @property
    def unscaled(self) -> frozenset[str]:
        """Matrices whose outputs lack the scale of their input."""
        return frozenset(name for graph in self._graphs for name in graph.unscaled)

    def pooled(self, prompt: Prompt, rows: int = 0) -> np.ndarray:
        """What `Model.pooled` gives for one prompt, [D] or []; adds `rows` tokens to what is read, more patches."""
        self._wanted = rows
        for graph in self._graphs:
            self._set_wanted(graph)
        pooled: np.ndarray = self._model.pooled([self._model.prompt(prompt.sequence, prompt.visuals)])[0]
        return pooled

    def _opened(self, path: Path, providers: Sequence[str], threads: int) -> TappedGraph:
        graph = open_tapped(path, providers, threads)
        self._graphs.append(graph)
        self._set_wanted(graph)
        return graph

    def _set_wanted(self, graph: TappedGraph) -> None:
        graph.wanted = self._wanted * (PATCH_ROWS if graph.is_vision else 1)


def open_tapped(path: Path, providers: Sequence[str], threads: int) -> TappedGraph:
    """A package's graph, its weights mapped from the package folder. Raises PackageError, MissingExtraError."""
    with needing_extra("export", "comparing packages needs onnx"):
        import onnx
    model = onnx.load(path, load_external_data=False)
    outputs = {output: node.op_type for node in model.graph.node for output in node.output}
    values: dict[str, str] = {}
    for node in model.graph.node:
        for inside, outside, operator in _outputs_of_body(node):
            outputs[outside], values[inside.removesuffix(OUTPUT)] = operator, outside
        values |= {each.removesuffix(OUTPUT): each for each in node.output if _is_read(each)}
    if not any(each.endswith(HIDDEN) for each in values):
        raise PackageError(
            f"{path} has no names for its hidden states, it is from an earlier version; "
            "export the package again with the installed one."
        )
    is_vision = TOKENS in outputs
    _add_outputs(model.graph, values)
    options = session_options(threads)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent.resolve()))
    try:
        session = create_session(model.SerializeToString(), options, providers)
    except Exception as error:  # onnxruntime's errors share no narrower base
        raise PackageError(f"{path} cannot be opened by onnxruntime {ort.__version__} ({error}).") from error
    unscaled = frozenset(name for name, value in values.items() if outputs[value] in UNSCALED_OPERATORS)
    pooled = frozenset[str]() if is_vision else _pooled(values)
    return TappedGraph(SessionGraph(session), tuple(values), unscaled, pooled, is_vision)


def _is_read(value: str) -> bool:
    return value.endswith((OUTPUT, HIDDEN))


def _outputs_of_body(scan: "NodeProto") -> Iterator[tuple[str, str, str]]:
    """What is read inside the body of a Scan as further outputs of the Scan: the names there and here, the operator."""
    from onnx import ValueInfoProto

    for body in [attribute.g for attribute in scan.attribute if attribute.HasField("g")]:
        for inside, operator in [(output, node.op_type) for node in body.node for output in node.output]:
            if _is_read(inside):
                outside = f"{inside}:pieces"  # [n, R, N]
                body.output.append(ValueInfoProto(name=inside))
                scan.output.append(outside)
                yield inside, outside, operator


def _pooled(values: Iterable[str]) -> frozenset[str]:
    """The decoder's values that hold the last token and nothing else."""
    last = f"{LAYERS}{sum(value.endswith(HIDDEN) for value in values) - 1}."
    return frozenset(value for value in values if value.startswith(last) and not value.endswith(EVERY_TOKEN))


def _add_outputs(graph: "GraphProto", values: dict[str, str]) -> None:
    """Every STEP-th row of each value [..., N], backwards from row START or the last one, as float32 [rows, N]."""
    from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

    graph.input.extend(helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in (START, STEP))
    # A slice backwards reaches the first row only with an end that lies before it.
    for name, number in (("tap:before_first", -(2**62)), ("tap:axis", 0)):
        graph.initializer.append(numpy_helper.from_array(np.array([number], np.int64), name))
    for name, value in values.items():
        flat, some, rows = f"{name}:flat", f"{name}:some", _rows_name(name)
        graph.node.append(helper.make_node("Flatten", [value], [flat], axis=-1))
        inputs = [flat, START, "tap:before_first", "tap:axis", STEP]
        graph.node.append(helper.make_node("Slice", inputs, [some]))
        graph.node.append(helper.make_node("Cast", [some], [rows], to=TensorProto.FLOAT))  # numpy has no bfloat16
        graph.output.append(ValueInfoProto(name=rows))


def _rows_name(value: str) -> str:
    return f"{value}:rows"
