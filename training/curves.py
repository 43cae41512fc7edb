"""The curves of both trainings as a picture: `python -m training.curves FOLDER docs/training.png`."""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

PANELS = {
    "tiny": ("R@10", "R@1", "R@10 de", "R@10 zh"),
    "tiny-reranker": ("R@1 reranked", "R@1"),
}


def main() -> None:
    """Read FOLDER/tiny.jsonl and FOLDER/tiny-reranker.jsonl, write a PNG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    figure = Figure(figsize=(10, 6), layout="constrained")
    for row, (name, measures) in zip(figure.subplots(2, 2), PANELS.items(), strict=True):
        points = joined(options.folder / f"{name}.jsonl")
        steps = [point["step"] for point in points]
        row[0].plot(steps, [point["loss"] for point in points], marker=".")
        row[0].set(title=f"{name}: loss", xlabel="step")
        for measure in measures:
            row[1].plot(steps, [point[measure] for point in points], marker=".", label=measure)
        row[1].set(title=f"{name}: recall in the unseen style", xlabel="step", ylim=(0, None))
        row[1].legend(fontsize="small")
        for axes in row:
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
