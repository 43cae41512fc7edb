"""The layers both graphs are made of. Shapes: B batch, S tokens, D hidden, H heads, F frames, P patches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from export.checkpoint import Checkpoint
from export.graph import CONTRIB, Graph, Value
from export.safetensors_file import Tensor
from quant.fold import Fold
from quant.kernels import Kernels
from quant.schemes import Linear, cast, products
from quant.selection import FLOAT32, Plan
from runtime.errors import CheckpointError

BLOCK_BYTES = 4 * 2**20  # what is computed on a block stays in the processor's caches
DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True)
class Parts:
    """What every block works with; `matrices` records the scheme each matrix was given.

    With `taps` (not None) the input of every product is noted there, for calibration.
    """

    graph: Graph
    checkpoint: Checkpoint
    plan: Plan = FLOAT32
    matrices: dict[str, str] = field(default_factory=dict)
    taps: list["Tap"] | None = None
    token_weight: list[Value] = field(default_factory=list)

    @property
    def kernels(self) -> Kernels:
        """What the provider can do."""
        return self.plan.kernels


@dataclass(frozen=True, eq=False)
class Tap:
    """An input that several matrices share: their names, the value [..., K] and K."""

    names: tuple[str, ...]
    value: Value
    width: int


@dataclass(frozen=True)
class RowRange:
    """Rows start..stop of a checkpoint tensor as a matrix [rows, everything else]; a vector is [rows, 1]."""

    name: str
    tensor: Tensor
    start: int
    stop: int
    fold: Fold | None = None
    importance: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.stop - self.start, int(np.prod(self.tensor.shape[1:], dtype=np.int64))

    @property
    def stored_dtype(self) -> str:
        """The checkpoint's own type."""
        return DTYPE_NAMES[self.tensor.dtype]

    def blocks(self) -> Iterator[np.ndarray]:
        """Row blocks as float32 [rows, columns], at most BLOCK_BYTES each. CheckpointError for NaN and infinity."""
        step = max(1, BLOCK_BYTES // (4 * self.shape[1]))
        for start in range(self.start, self.stop, step):
            stop = min(start + step, self.stop)
            rows = self.tensor.rows(start, stop).reshape(stop - start, -1)
            _require_finite(rows, self.name)
            yield rows if self.fold is None else self.fold.apply(rows, start - self.start)


def _require_finite(rows: np.ndarray, name: str) -> None:
    # Their sum takes a fraction of the time, and is finite unless one of them is not (or they are absurdly large).
    with np.errstate(all="ignore"):
        suspicious = not np.isfinite(rows.sum())
    if suspicious and not np.isfinite(rows).all():
        raise CheckpointError(f"{name} of the checkpoint holds NaN or infinity: it is damaged, get it again.")


def matrix(parts: Parts, name: str, shape: Sequence[int]) -> RowRange:
    """A whole weight of the checkpoint, as the plan folds it."""
    return row_range(parts, name, parts.checkpoint.tensor(name, tuple(shape)), (0, shape[0]))


def row_range(parts: Parts, name: str, tensor: Tensor, rows: tuple[int, int]) -> RowRange:
    """Some rows of a tensor under a name of their own, as the plan folds them."""
    return RowRange(name, tensor, *rows, parts.plan.folds.get(name), parts.plan.importance.get(name))


def vector(parts: Parts, name: str, size: int, dtype: str | None = None) -> Value:
    """A norm's weight or bias [size], of the type of the activations or `dtype`."""
    stored = parts.graph.weight(name, parts.kernels.weights, (size,), matrix(parts, name, (size,)).blocks)
    value: Value = cast(parts.graph, stored, parts.kernels.weights, dtype or parts.kernels.activations)
    return value


def entering(parts: Parts, x: Value) -> Value:
    """What comes in as float32, in the type of the activations."""
    value: Value = cast(parts.graph, x, "float32", parts.kernels.activations)
    return value


def leaving(parts: Parts, x: Value) -> Value:
    """A value in the type of the activations as float32, what every output is."""
    value: Value = cast(parts.graph, x, parts.kernels.activations, "float32")
    return value


def linears(parts: Parts, x: Value, layers: Sequence[Linear]) -> list[Value]:
    """x [..., K] through layers that share it → one [..., N] each; consecutive equal schemes go together."""
    schemes = [parts.plan.scheme_for(layer.weight.name) for layer in layers]
    if parts.taps is not None:
        parts.taps.append(Tap(tuple(layer.weight.name for layer in layers), x, layers[0].weight.shape[1]))
    for layer, scheme in zip(layers, schemes, strict=True):
        parts.matrices[layer.weight.name] = scheme.name
    outputs: list[Value] = products(parts.graph, x, layers, schemes)
    for layer, output in zip(layers, outputs, strict=True):
        output.name = f"{layer.weight.name}:output"  # the same in every precision, so that packages can be compared
    return outputs


def linear(
    parts: Parts, x: Value, prefix: str, sizes: tuple[int, int], bias: bool = False, after_gelu: bool = False
) -> Value:
    """x [..., K] through `prefix.weight` of `sizes` (N, K), with `prefix.bias` if asked → [..., N]."""
    offset = matrix(parts, f"{prefix}.bias", sizes[:1]) if bias else None
    return linears(parts, x, [Linear(matrix(parts, f"{prefix}.weight", sizes), offset, after_gelu=after_gelu)])[0]


def table_rows(parts: Parts, name: str, shape: tuple[int, int], ids: Value) -> Value:
    """Rows of the table `name` at integer `ids` [...] → [..., K]."""
    scheme = parts.plan.scheme_for(name)
    parts.matrices[name] = scheme.name
    rows: Value = scheme.rows(parts.graph, matrix(parts, name, shape), ids)
    return rows


def rms_norm(parts: Parts, x: Value, name: str, size: int, epsilon: float, dtype: str | None = None) -> Value:
    """RMSNorm over the last axis of x, whose type is `dtype` if not the activations'; its sums are in float32.

    The fused skip form is slower on the CPU.
    """
    weight = vector(parts, name, size, dtype)
    return parts.graph.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=epsilon, stash_type=1)


def layer_norm(parts: Parts, x: Value, prefix: str, size: int) -> Value:
    """LayerNorm over the last axis with the vision encoder's epsilon."""
    weight, bias = vector(parts, f"{prefix}.weight", size), vector(parts, f"{prefix}.bias", size)
    return parts.graph.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=1e-6)


def reshape(graph: Graph, x: Value, shape: Sequence[int]) -> Value:
    """Reshape with ONNX's conventions: 0 keeps a dimension, -1 is inferred."""
    return graph.op("Reshape", x, graph.constant(np.array(shape, np.int64)))


def swiglu(parts: Parts, x: Value, prefix: str, sizes: tuple[int, int]) -> Value:
    """down(silu(gate(x)) * up(x)); `sizes` is (intermediate, hidden). SiLU as QuickGelu(alpha 1): the fast kernel."""
    intermediate, hidden = sizes
    gate, up = linears(
        parts,
        x,
        [Linear(matrix(parts, f"{prefix}.{name}_proj.weight", (intermediate, hidden))) for name in ("gate", "up")],
    )
    activated = parts.graph.op("QuickGelu", gate, domain=CONTRIB, alpha=1.0)
    return linear(parts, parts.graph.op("Mul", activated, up), f"{prefix}.down_proj", (hidden, intermediate))
