"""A comparison as lines of text: a table in the order of the model, then the figures of the end."""

from collections.abc import Iterator
from itertools import groupby
from math import isnan

from quant.compare import Comparison
from quant.losses import MatrixLoss, costliest
from quant.selection import DECODER, VISION
from runtime.manifest import Task

NUM_WORST = 5
WIDTHS = "{:<38} {:>9} {:>9} {:>9}  {}"


def summary(comparison: Comparison, task: Task) -> Iterator[str]:
    """The lines of the table and of the end-to-end block; the NUM_WORST matrices by increase are marked."""
    worst = {each.name for each in sorted(comparison.matrices, key=_increase, reverse=True)[:NUM_WORST]}
    states = {layer.name: layer for layer in comparison.layers}
    yield WIDTHS.format("layer, matrix", "1-cosine", "increase", "relative", "scheme")
    for name, matrices in groupby(comparison.matrices, key=lambda each: each.layer):
        for each in matrices:
            mark = "  <-- among the worst" if each.name in worst and each.increase > 0 else ""
            numbers = _number(each.loss), _signed(each.increase), _number(each.relative)
            yield WIDTHS.format(_short(each), *numbers, each.scheme + mark)
        if name in states:
            state = states[name]
            numbers = _number(state.loss), _signed(state.increase), ""
            yield WIDTHS.format(f"{name} hidden state", *numbers, "").rstrip()
    yield ""
    yield from _end_to_end(comparison, task)


def _end_to_end(comparison: Comparison, task: Task) -> Iterator[str]:
    agreement = comparison.agreement
    yield f"end to end, {agreement.count} inputs (layers and matrices: {comparison.rows} tokens of them)"
    if task == "embedding":
        yield f"  cosine             {agreement.cosine_mean:.6f} mean, {agreement.cosine_minimum:.6f} lowest"
        yield f"  centred cosine     {agreement.centred_mean:.6f} mean, {agreement.centred_minimum:.6f} lowest"
    else:
        yield f"  correlation        {agreement.cosine_mean:.6f} of the logits"
    yield f"  top-10 overlap     {agreement.overlap:.4f}"
    yield f"  Kendall's tau      {agreement.kendall:.4f} of {'similarities' if task == 'embedding' else 'scores'}"
    yield f"  score spread       {agreement.spread:.4f} of that of float"
    yield f"  largest difference {agreement.largest:.2e}"
    yield f"  costliest layers   {costliest(comparison.layers)}"


def _short(matrix: MatrixLoss) -> str:
    """The name without what all of them share."""
    return matrix.name.removeprefix(DECODER).removeprefix(VISION).replace(".weight", "")


def _increase(matrix: MatrixLoss) -> float:
    return -1.0 if isnan(matrix.increase) else matrix.increase


def _number(value: float) -> str:
    return "-" if isnan(value) else f"{value:.1e}"


def _signed(value: float) -> str:
    return "-" if isnan(value) else f"{value:+.1e}"
