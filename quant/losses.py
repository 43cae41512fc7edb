"""What quantisation costs inside a model: how far the same values of two packages are apart, layer by layer.

A value of one package is a list of float arrays [rows, N], one for each run of its graph; row 0 is the last token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quant.selection import DECODER, VISION
from runtime.manifest import VisionConfig

Rows = Mapping[str, Sequence[np.ndarray]]
HIDDEN = ":hidden"
UNDEFINED = float("nan")
# Calibration may have taken a factor from each output channel of these, to give it to the next product.
FOLDED = ("v_proj.weight", "up_proj.weight", "qkv.weight[v]")


@dataclass(frozen=True)
class LayerLoss:
    """1 − cosine of the hidden state after a layer, a mean over rows, and how much more that is than before it.

    The first layer's increase is all of its loss: token table, patches and visual tokens are in it.
    """

    name: str
    loss: float
    increase: float


@dataclass(frozen=True)
class MatrixLoss:
    """The output of one matrix: 1 − cosine, a mean over rows, and ‖difference‖ / ‖float‖ over all of them.

    The error is accumulated, the inputs of the two packages differ already; `increase` is `loss` less that of the
    hidden state that the layer starts from. `relative` is NaN where the quantised output lacks its scale (q and k of
    int8-per-token, which a norm follows). After calibration an output may differ from float by a factor a channel
    (FOLDED); the best factors are fitted first, so an error of that kind is seen in the next product only, and both
    errors are NaN where there is only one row.
    """

    name: str
    layer: str
    scheme: str
    loss: float
    increase: float
    relative: float


@dataclass(frozen=True)
class Units:
    """How the values of two packages can be compared: which lack their scale, and whether calibration folded any."""

    unscaled: frozenset[str]
    folded: bool


def layer_of(matrix: str) -> str:
    """`layers.3`, `blocks.3`, `deepstack_merger_list.0`, `patch_embed` or `merger` for a checkpoint name."""
    parts = matrix.removeprefix(DECODER).removeprefix(VISION).split(".")
    return ".".join(parts[:2]) if parts[1].isdigit() else parts[0]


def layer_losses(expected: Rows, found: Rows) -> list[LayerLoss]:
    """Of every hidden state in `expected`, in its order."""
    layers = []
    for value in expected:
        if value.endswith(HIDDEN):
            name = value.removesuffix(HIDDEN)
            kind, index = name.split(".")
            loss = _mean_loss(expected[value], found[value])
            before = _loss_before(f"{kind}.{int(index) - 1}", expected, found, value)
            layers.append(LayerLoss(name, loss, loss - before))
    return layers


def matrix_losses(
    expected: Rows, found: Rows, schemes: Mapping[str, str], vision: VisionConfig, units: Units
) -> list[MatrixLoss]:
    """Of every matrix in `expected`, in its order; `schemes` is the quantised package's."""
    matrices = []
    for name in expected:
        if name.endswith(HIDDEN):
            continue
        one, other = np.concatenate(expected[name]), np.concatenate(found[name])
        loss, relative = _errors(one, other, units.folded and name.endswith(FOLDED))
        layer = layer_of(name)
        before = _loss_before(_input_of(layer, vision), expected, found, name)
        matrices.append(
            MatrixLoss(
                name, layer, schemes[name], loss, loss - before, UNDEFINED if name in units.unscaled else relative
            )
        )
    return matrices


def costliest(layers: Sequence[LayerLoss], count: int = 3) -> str:
    """The layers that lose most, for a sentence: `layers.3 (+0.012), blocks.0 (+0.003)`."""
    ranked = sorted(layers, key=lambda layer: layer.increase, reverse=True)[:count]
    return ", ".join(f"{layer.name} (+{layer.increase:.2g})" for layer in ranked if layer.increase > 0) or "none"


def row_losses(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """1 − cosine of each row of two float arrays [n, N] → float64 [n]; 0 for two rows of zeros."""
    one, other = expected.astype(np.float64), found.astype(np.float64)
    length, length_found = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
    lengths = length * length_found
    cosines = (one * other).sum(axis=1) / np.where(lengths == 0, 1, lengths)
    cosines[(length == 0) & (length_found == 0)] = 1
    losses: np.ndarray = np.maximum(1 - cosines, 0)
    return losses


def _mean_loss(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    return float(row_losses(np.concatenate(expected), np.concatenate(found)).mean())


def _loss_before(layer: str, expected: Rows, found: Rows, value: str) -> float:
    """The loss of a layer's hidden state over the rows that `value` has too (the last layer has one a prompt)."""
    before = f"{layer}{HIDDEN}"
    if before not in expected:
        return 0.0
    counts = [len(rows) for rows in expected[value]]
    pairs = [[rows[:count] for rows, count in zip(side[before], counts, strict=True)] for side in (expected, found)]
    return _mean_loss(*pairs)


def _input_of(layer: str, vision: VisionConfig) -> str:
    """The layer whose hidden state `layer` starts from; a name that there is not for the first ones."""
    kind, _, index = layer.partition(".")
    if kind == "merger":
        return f"blocks.{vision.depth - 1}"
    if kind == "deepstack_merger_list":
        return f"blocks.{vision.deepstack_visual_indexes[int(index)]}"
    return f"{kind}.{int(index) - 1}" if index else ""


def _errors(expected: np.ndarray, found: np.ndarray, folded: bool) -> tuple[float, float]:
    """Mean 1 − cosine, and the norm of the difference relative to `expected`."""
    one, other = expected.astype(np.float64), found.astype(np.float64)
    unfitted = 1.0
    if folded:
        if len(one) < 2:
            return UNDEFINED, UNDEFINED
        squares = np.square(other).sum(axis=0)
        other = other * np.maximum((one * other).sum(axis=0) / np.where(squares == 0, 1, squares), 0)
        unfitted = len(one) / (len(one) - 1)  # a factor fitted to n rows takes one part in n of the error
    length = np.linalg.norm(one)
    relative = np.linalg.norm(one - other) / length if length else UNDEFINED
    return float(row_losses(one, other).mean() * unfitted), float(relative * unfitted**0.5)
