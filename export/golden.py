"""The golden inputs of a package and what they give: in float32 out of the checkpoint, and as the package stores it."""

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np

from export.blueprint import Blueprint
from export.calibration import blueprint_encoder, measure
from export.layer_graphs import LayerGraphs
from export.layerwise import Sample
from quant.prompts import sample_prompt
from quant.samples import QUERY, SENTENCES, SHORT, draw_chart
from runtime.golden import Golden
from runtime.machine import machine_facts
from runtime.manifest import Task
from runtime.reranker import probability
from runtime.vectors import finish

PICTURE_SIZE = (256, 192)


def golden_items() -> tuple[dict[str, Any], ...]:
    """Two texts, a drawn picture, and both together."""
    file = io.BytesIO()
    draw_chart(PICTURE_SIZE).save(file, "PNG")
    picture = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return ({"text": SHORT[0]}, {"text": SENTENCES[6]}, {"image": picture}, {"image": picture, "text": SENTENCES[0]})


def make_golden(
    blueprint: Blueprint, float32: LayerGraphs | None, package: LayerGraphs | None, advance: Callable[[int], object]
) -> Golden:
    """Run both models one layer at a time, `advance(1)` after each of `layerwise.num_steps`.

    `float32` is None where the package itself is float32, `package` where its kernels are not those of this machine.
    """
    encoder, items = blueprint_encoder(blueprint), golden_items()
    prompts = [sample_prompt(encoder, blueprint.task, item, f"golden {n}") for n, item in enumerate(items)]
    samples = [
        Sample(prompt.sequence, prompt.visuals, np.ones(len(prompt.sequence.input_ids), np.float32))
        for prompt in prompts
    ]
    found = [
        None if graphs is None else _results(blueprint.task, measure(blueprint, graphs, samples, advance).pooled)
        for graphs in (float32, package)
    ]
    expected = found[1] if found[0] is None else found[0]
    assert expected is not None, "a golden output is that of float32, of the package or of both"
    return Golden(machine_facts()["instructions"], _inputs(blueprint.task, items), expected, found[1])


def _results(task: Task, pooled: np.ndarray) -> np.ndarray:
    """What `process` makes of pooled outputs: unit vectors [N, D] or scores [N]."""
    if task == "embedding":
        return finish(pooled, pooled.shape[1], normalize=True)
    return np.array([probability(float(logit)) for logit in pooled], np.float32)


def _inputs(task: Task, items: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """As `process` takes them; the reranker's query is that of `sample_prompt`."""
    if task == "embedding":
        return items
    return tuple({"query": {"text": QUERY}, "documents": [item]} for item in items)
