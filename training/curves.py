"""The curve of the training as a picture: `python -m training.curves FOLDER docs/training.png`."""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

MEASURES = ("R@10", "R@1", "R@10 de", "R@10 zh")


def main() -> None:
    """Read FOLDER/tiny.jsonl, write a PNG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    points = joined(options.folder / "tiny.jsonl")
    steps = [point["step"] for point in points]
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, [point["loss"] for point in points], marker=".")
    left.set(title="loss", xlabel="step")
    for measure in MEASURES:
        right.plot(steps, [point[measure] for point in points], marker=".", label=measure)
    right.set(title="recall in the unseen style", xlabel="step", ylim=(0, None))
    right.legend(fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(options.picture, dpi=120)


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
