"""The golden inputs of a package and what they give: in float32 out of the checkpoint, and as the package stores it."""

import base64
import io
from typing import Any

import numpy as np

from export.blueprint import Blueprint
from export.layerwise import Sample
from quant.prompts import sample_prompt
from quant.samples import QUERY, SENTENCES, SHORT, draw_chart
from runtime.golden import Golden
from runtime.manifest import Task
from runtime.planning.machine import machine_facts
from runtime.reranker import probability
from runtime.vectors import finish

PICTURE_SIZE = (256, 192)


def golden_items() -> tuple[dict[str, Any], ...]:
    """Two texts, a drawn picture, and both together."""
    file = io.BytesIO()
    draw_chart(PICTURE_SIZE).save(file, "PNG")
    picture = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return ({"text": SHORT[0]}, {"text": SENTENCES[6]}, {"image": picture}, {"image": picture, "text": SENTENCES[0]})


def golden_samples(blueprint: Blueprint) -> tuple[Sample, ...]:
    """The golden inputs as prompts of the task."""
    items = enumerate(golden_items())
    prompts = [sample_prompt(blueprint.encoder, blueprint.task, item, f"golden {number}") for number, item in items]
    return tuple(
        Sample(prompt.sequence, prompt.visuals, np.ones(len(prompt.sequence.input_ids), np.float32), measured=False)
        for prompt in prompts
    )


def make_golden(task: Task, float32: np.ndarray, package: np.ndarray | None) -> Golden:
    """Out of what float32 and what the package gives for `golden_samples`: states [N, D] or logits [N].

    `package` is None where its kernels are not those of this machine.
    """
    own = None if package is None else _results(task, package)
    return Golden(machine_facts()["instructions"], _inputs(task, golden_items()), _results(task, float32), own)


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
