"""Two plots of bench.evidence: quality against size, and against speed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure


class Point(Protocol):
    """What of a row is drawn."""

    name: str
    megabytes: float | None
    overlap: float
    recall_1: float
    mrr: float
    ms_picture: float | None


AXES = {"size": ("megabytes", "MB on disk"), "speed": ("ms_picture", "milliseconds a picture")}
QUALITIES = {
    "overlap": "of float32's ten best",
    "recall_1": "R@1",
    "mrr": "mean reciprocal rank",
}


def write_plots(rows: Sequence[Point], folder: Path) -> None:
    """evidence-size.png and evidence-speed.png."""
    packages = [row for row in rows if row.megabytes is not None and "outliers" not in row.name]
    for name, (field, label) in AXES.items():
        figure = Figure(figsize=(9, 9), layout="constrained")
        for axes, (quality, title) in zip(figure.subplots(3, 1, sharex=True), QUALITIES.items(), strict=True):
            for row in packages:
                axes.scatter(getattr(row, field), getattr(row, quality), s=60, label=row.name.replace("`", ""))
            axes.set_ylabel(title)
            axes.grid(alpha=0.3)
        axes.set_xlabel(label)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
        figure.savefig(folder / f"evidence-{name}.png", dpi=150)
