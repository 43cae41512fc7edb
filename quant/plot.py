"""A comparison as a picture: what each layer costs, and what each matrix."""

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from quant.compare import Comparison
from quant.losses import LayerLoss, MatrixLoss
from runtime.errors import InputError
from runtime.extras import needing_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Float against itself is 0, which a logarithm cannot show.
SMALLEST = 1e-9
WIDTH, HEIGHT, RESOLUTION = 10.0, 9.0, 150  # inches, dots an inch
MARKERS = {"layers": "o", "blocks": "^"}
LABELS = {"layers": "decoder", "blocks": "vision"}
OTHER_MARKER = "s"


def require_plot(file: Path) -> None:
    """InputError unless `file` can become a PNG; MissingExtraError without matplotlib. Before the work, not after."""
    if file.suffix.lower() != ".png":
        raise InputError(f"--plot {file} does not end in .png; choose such a name.")
    if not file.parent.is_dir():
        raise InputError(f"--plot {file}: there is no folder {file.parent}; create it or choose another.")
    with needing_extra("plot", "plots need matplotlib"):
        import matplotlib.figure  # noqa: F401


def write_plot(comparison: Comparison, title: str, file: Path) -> None:
    """Write two panels as PNG, losses below SMALLEST at SMALLEST. Raises InputError where it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    figure.suptitle(title)
    upper, lower = figure.subplots(2, 1)
    _draw_layers(upper, comparison.layers)
    _draw_matrices(lower, comparison.matrices)
    for panel in (upper, lower):
        panel.set(yscale="log", ylabel="1 − cosine")
        panel.locator_params(axis="x", integer=True)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    try:
        figure.savefig(file, format="png", dpi=RESOLUTION)
    except OSError as error:
        raise InputError(f"--plot {file} cannot be written ({error.strerror}); choose another place.") from error


def _draw_layers(panel: "Axes", layers: tuple[LayerLoss, ...]) -> None:
    for kind, label in LABELS.items():
        losses = [max(layer.loss, SMALLEST) for layer in layers if layer.name.startswith(kind)]
        if losses:
            panel.plot(range(len(losses)), losses, marker=MARKERS[kind], markersize=4, label=label)
    panel.set(title="hidden state after each layer", xlabel="layer")


def _draw_matrices(panel: "Axes", matrices: tuple[MatrixLoss, ...]) -> None:
    """A colour a kind of matrix, counted anew for each marker; mergers stand behind the last block."""
    depth = sum(each.layer.startswith("blocks.") and each.name.endswith("fc2.weight") for each in matrices)
    dots: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for each in matrices:
        if not isnan(each.loss):
            of_marker = dots.setdefault(MARKERS.get(each.layer.partition(".")[0], OTHER_MARKER), {})
            of_marker.setdefault(_kind(each), []).append((_position(each, depth), max(each.loss, SMALLEST)))
    for marker, kinds in dots.items():
        for number, (kind, points) in enumerate(kinds.items()):
            across, up = zip(*points, strict=True)
            panel.scatter(across, up, s=20, marker=marker, color=f"C{number}", label=kind)
    panel.set(title="output of each matrix", xlabel="layer (patch_embed before, mergers after the blocks)")


def _kind(matrix: MatrixLoss) -> str:
    """`q_proj`, `vision qkv[q]`, `merger linear_fc1`."""
    kind, last = matrix.layer.partition(".")[0], matrix.name.replace(".weight", "").rpartition(".")[2]
    return {"layers": "", "blocks": "vision "}.get(kind, f"{kind.removesuffix('_merger_list')} ") + last


def _position(matrix: MatrixLoss, depth: int) -> int:
    kind, _, index = matrix.layer.partition(".")
    if kind in MARKERS:
        return int(index)
    return -1 if kind == "patch_embed" else depth + (1 + int(index) if index else 0)
