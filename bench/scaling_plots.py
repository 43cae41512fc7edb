"""Plots of what bench.scaling and bench/export_cost.py wrote.

    python -m bench.scaling_plots scaling.json export.json docs

Writes length.png, batch.png, picture.png, export.png and operators.png into the folder.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = dict[str, Any]
SIZE, RESOLUTION = (9.0, 3.6), 120
GIGA = 1e9
OTHER = 0.02  # operators below this share are drawn as one


def save(figure: Figure, folder: Path, name: str) -> None:
    """As PNG."""
    figure.savefig(folder / f"{name}.png", dpi=RESOLUTION)


def pair(title: str) -> tuple[Figure, Axes, Axes]:
    """A figure of two panels."""
    figure = Figure(figsize=SIZE, layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    for panel in (left, right):
        panel.grid(alpha=0.3)
    return figure, left, right


def scale(panel: Axes, rows: Sequence[Row], label: str, unit: str) -> None:
    """Both axes logarithmic, the measured sizes as ticks."""
    sizes = sorted({row["size"] for row in rows})
    panel.set(xscale="log", yscale="log", xlabel=label, ylabel=unit)
    panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
    panel.minorticks_off()
    panel.legend(fontsize="small")


def growth(rows: Sequence[Row], folder: Path, name: str, title: str, label: str) -> None:
    """Seconds by threads beside memory."""
    figure, left, right = pair(title)
    for threads in sorted({row["threads"] for row in rows}, reverse=True):
        chosen = [row for row in rows if row["threads"] == threads]
        left.plot(*_columns(chosen, lambda row: row["seconds"]), marker="o", label=f"{threads} thread(s)")
    two = [row for row in rows if row["threads"] == 2]
    right.plot(*_columns(two, lambda row: row["resident"] / GIGA), marker="o", label="resident, peak")
    right.plot(*_columns(two, lambda row: row["anonymous"] / GIGA), marker="s", label="of it anonymous")
    scale(left, rows, label, "seconds")
    scale(right, two, label, "GB")
    right.set(yscale="linear", ylim=(0, None))
    save(figure, folder, name)


def _columns(rows: Sequence[Row], value: Callable[[Row], float]) -> tuple[list[float], list[float]]:
    return [row["size"] for row in rows], [value(row) for row in rows]


def exports(rows: Sequence[Row], folder: Path) -> None:
    """Seconds and memory of exports by the checkpoint's bytes."""
    figure, left, right = pair("export of a checkpoint, random weights")
    for precision in dict.fromkeys(row["precision"] for row in rows):
        for calibrated in (False, True):
            chosen = [
                row for row in rows if row["precision"] == precision and (row["calibration"] != "none") == calibrated
            ]
            chosen.sort(key=lambda row: row["bytes"])
            label = precision + (", calibrated" if calibrated else "")
            sizes = [row["bytes"] / GIGA for row in chosen]
            if chosen:
                left.plot(sizes, [row["wall"] for row in chosen], marker="o", label=label)
                right.plot(sizes, [row["resident"] / GIGA for row in chosen], marker="o", label=label)
    left.set(xlabel="checkpoint, GB", ylabel="seconds", ylim=(0, None))
    right.set(xlabel="checkpoint, GB", ylabel="peak resident, GB", ylim=(0, None))
    left.legend(fontsize="small")
    save(figure, folder, "export")


def operators(cases: dict[str, Any], folder: Path) -> None:
    """A bar a graph: what part of its time each operator takes, and how near its products come to the peak."""
    figure = Figure(figsize=SIZE, layout="constrained")
    panel = figure.subplots()
    bars = [
        (f"{name}\n{graph}", times, facts["share_of_peak"].get(graph))
        for name, facts in cases.items()
        for graph, times in facts["milliseconds"].items()
        if times
    ]
    colours: dict[str, str] = {}
    for place, (_, times, share) in enumerate(bars):
        total, left = sum(times.values()), 0.0
        small = sum(spent for spent in times.values() if spent < OTHER * total)
        large = {name: spent for name, spent in times.items() if spent >= OTHER * total}
        for name, spent in [*sorted(large.items(), key=lambda item: -item[1]), ("others", small)]:
            new = name not in colours
            colour = colours.setdefault(name, f"C{len(colours)}" if len(colours) < 10 else "grey")
            panel.barh(place, spent / total, left=left, color=colour, label=name if new else None)
            left += spent / total
        if share:
            text = f"int8 products at {share:.0%}\nof the VNNI peak"
            panel.text(0.01, place, text, va="center", fontsize="small", color="white")
    panel.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    panel.set(xlim=(0, 1), xlabel="share of the graph's time")
    panel.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, folder, "operators")


def main() -> None:
    """Draw everything."""
    scaling, export, folder = (Path(argument) for argument in sys.argv[1:])
    content = json.loads(scaling.read_text(encoding="utf-8"))
    folder.mkdir(exist_ok=True)
    labels = {
        "text": ("length", "one text, --int8 at 2B", "tokens"),
        "batch": ("batch", "texts of 128 tokens in one call of process, --int8 at 2B", "texts"),
        "picture": ("picture", "one picture end to end, --int8 at 2B", "visual tokens"),
    }
    for kind, (name, title, label) in labels.items():
        growth([row for row in content["points"] if row["kind"] == kind], folder, name, title, label)
    exports(json.loads(export.read_text(encoding="utf-8")), folder)
    operators(content["operators"], folder)


if __name__ == "__main__":
    main()
