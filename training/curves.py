"""The curve of a training as a picture: `python -m training.curves FOLDER/tiny.jsonl docs/training.png`."""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

NOT_MEASURED = {"step", "loss", "seconds"}


def main() -> None:
    """Read a log of points, write a PNG: the loss, and beside it what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    points = joined(options.log)
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw(left, points, "loss")
    for measure in sorted({name for point in points for name in point} - NOT_MEASURED):
        draw(right, points, measure)
    left.set(title="loss", xlabel="step")
    right.set(title="recall in the unseen style", xlabel="step", ylim=(0, None))
    right.legend(fontsize="small")
    figure.savefig(options.picture, dpi=120)


def draw(axes: Any, points: list[dict[str, Any]], name: str) -> None:
    """A line through the points that have it."""
    pairs = [(point["step"], point[name]) for point in points if name in point]
    axes.plot(*zip(*pairs, strict=True), marker=".", label=name)
    axes.grid(alpha=0.3)


def joined(path: Path) -> list[dict[str, Any]]:
    """The points of a curve; the steps of a training that went on are counted on."""
    points: list[dict[str, Any]] = []
    before = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        point = json.loads(line)
        if points and before + point["step"] <= points[-1]["step"]:
            before = points[-1]["step"]
        points.append(point | {"step": before + point["step"]})
    return points


if __name__ == "__main__":
    main()
