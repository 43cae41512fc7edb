"""Two packages of one checkpoint run on the same inputs: what the quantised one lost, layer by layer and in the end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quant.agreement import Agreement, embedding_agreement, score_agreement
from quant.losses import LayerLoss, MatrixLoss, Rows, Units, layer_losses, matrix_losses
from quant.prompts import MakePrompt, prompts
from quant.selection import UNQUANTISED
from quant.taps import TappedPackage
from runtime.errors import PackageError
from runtime.graphs.package import open_encoder
from runtime.manifest import Manifest
from runtime.vectors import require_finite

# Rows of every inner value that are looked at, over all inputs: at the 2B shape 0.3 GB for each of the two packages.
ROWS = 128


@dataclass(frozen=True)
class Comparison:
    """`layers` and `matrices` in the order of the graphs, the vision encoder (if there was a picture) first.

    `rows`: how many tokens they are means of.
    """

    layers: tuple[LayerLoss, ...]
    matrices: tuple[MatrixLoss, ...]
    agreement: Agreement
    rows: int


@dataclass(frozen=True, eq=False)
class Run:
    """What one package gives: pooled [N, D] or logits [N], and rows of the values inside."""

    pooled: np.ndarray
    rows: Rows
    unscaled: frozenset[str]


def compare(
    expected: Path,
    found: Path,
    inputs: Path | None = None,
    start: Callable[[int], Callable[[int], object]] | None = None,
) -> Comparison:
    """Compare the package `found` with the float one `expected` on the lines of `inputs`, or on the built-in samples.

    One package is open at a time. End to end all inputs count; inside, about ROWS positions spread over at most ROWS
    inputs, the last token of each among them. `start` gets the number of runs and returns what is called with 1 after
    each. Raises PackageError where `expected` is quantised, or of another checkpoint or task; InputError for inputs.
    """
    manifest, other = Manifest.read(expected), Manifest.read(found)
    _require_float(expected, manifest)
    _require_same_model(expected, manifest, found, other)
    makers = prompts(open_encoder(expected, manifest, {}), manifest.task, inputs)
    advance = start(2 * len(makers)) if start else lambda count: None
    one = _run(expected, manifest, makers, advance)
    two = _run(found, other, makers, advance)
    agreement = (embedding_agreement if manifest.task == "embedding" else score_agreement)(one.pooled, two.pooled)
    units = Units(one.unscaled | two.unscaled, folded=bool(manifest.calibration or other.calibration))
    return Comparison(
        tuple(layer_losses(one.rows, two.rows)),
        tuple(matrix_losses(one.rows, two.rows, other.matrices, manifest.vision, units)),
        agreement,
        sum(map(len, one.rows["layers.0:hidden"])),
    )


def _require_float(expected: Path, manifest: Manifest) -> None:
    if manifest.precision not in UNQUANTISED:
        raise PackageError(
            f"{expected} is {manifest.precision}, and losses are measured against float; "
            "give the package that was exported with --fp32 first."
        )


def _require_same_model(expected: Path, manifest: Manifest, found: Path, other: Manifest) -> None:
    if manifest.task != other.task:
        raise PackageError(
            f"{expected} is for the task {manifest.task} and {found} for {other.task}; compare packages of one task."
        )
    if manifest.source.sha256 != other.source.sha256:
        raise PackageError(
            f"{found} was made from the checkpoint {other.source.checkpoint} ({other.source.sha256[:12]}) and "
            f"{expected} from {manifest.source.checkpoint} ({manifest.source.sha256[:12]}); "
            "export both from the same checkpoint."
        )


def _run(folder: Path, manifest: Manifest, makers: Sequence[MakePrompt], advance: Callable[[int], object]) -> Run:
    package = TappedPackage(folder, manifest)
    every = -(-len(makers) // ROWS)  # above ROWS inputs only some are looked into
    rows = max(1, ROWS * every // len(makers))
    pooled = []
    for number, make in enumerate(makers):
        pooled.append(package.pooled(make(), 0 if number % every else rows))
        require_finite(pooled[-1], f"the result of {folder} for input {number}")
        advance(1)
    return Run(np.stack(pooled), package.rows, package.unscaled)
