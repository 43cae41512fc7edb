"""`python -m export --verify`: the package against the torch reference on a fixed set of inputs, as a table."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from export.parity import Difference, compare_embedding, compare_score
from export.reference import ReferenceEmbedder, ReferenceReranker
from export.reference_prompt import ReferenceOptions
from runtime.embedder import Qwen3VLEmbedder
from runtime.manifest import VERIFY, Manifest
from runtime.reranker import Qwen3VLReranker

TEXT = "A woman shares a joyful moment with her golden retriever on a sun-drenched beach at sunset."
INSTRUCTION = "Retrieve images or text relevant to the user's query"


def verify_package(folder: Path, package: Path, say: Callable[[str], object]) -> list[Difference]:
    """Compare every case, store the table as `verify.json` in the package and return it.

    Raises MissingExtraError without the `reference` extra.
    """
    manifest = Manifest.read(package)
    options = ReferenceOptions(**asdict(manifest.defaults))
    verify = _verify_embedder if manifest.task == "embedding" else _verify_reranker
    differences = verify(folder, package, options, say)
    rows = [{**vars(difference), "passed": difference.passed} for difference in differences]
    (package / VERIFY).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8", newline="\n")
    return differences


def embedding_cases() -> dict[str, dict[str, Any]]:
    """The fixed inputs of an embedding package: texts, pictures, mixtures, frames."""
    return {
        "text": {"text": TEXT},
        "text with instruction": {"text": "海滩上的女人和狗 🐕", "instruction": INSTRUCTION},
        "picture": {"image": drawn_picture(320, 240)},
        "picture and text": {"image": drawn_picture(200, 333), "text": TEXT},
        "two pictures": {"image": [drawn_picture(96, 96), drawn_picture(250, 130)], "text": "which one?"},
        "video": {"video": [drawn_picture(160, 120, step) for step in range(5)], "text": "what happens?"},
        "nothing": {},
    }


def rerank_cases() -> dict[str, dict[str, Any]]:
    """The fixed pairs of a reranker package, each a request with one document."""
    cases = embedding_cases()
    query = {"text": "a woman playing with her dog"}
    pairs = {f"text and {name}": (query, _content(case)) for name, case in cases.items()}
    pairs["picture and picture and text"] = (_content(cases["picture"]), _content(cases["picture and text"]))
    return {
        name: {"query": one, "documents": [other], "instruction": INSTRUCTION} for name, (one, other) in pairs.items()
    }


def drawn_picture(width: int, height: int, step: int = 0) -> Image.Image:
    """A deterministic picture with edges, areas and a gradient; `step` moves its disc."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns * 255 // width, rows * 255 // height, (rows + columns) % 256], axis=-1)
    picture = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    size = min(width, height) // 3
    draw.ellipse([10 + 8 * step, 10, 10 + 8 * step + size, 10 + size], fill=(250, 200, 30))
    draw.rectangle([width // 2, height // 2, width - 8, height - 8], outline=(20, 20, 90), width=5)
    return picture


def format_table(differences: Sequence[Difference]) -> str:
    """The worst case of each stage, then a line of judgement."""
    worst: dict[str, Difference] = {}
    for each in differences:
        if each.stage not in worst or each.difference / (each.bound or 1) > worst[each.stage].difference / (
            worst[each.stage].bound or 1
        ):
            worst[each.stage] = each
    lines = [f"{'stage':16} {'max difference':>15} {'bound':>9} {'cosine':>12}  {'':6} worst case"]
    for stage, each in worst.items():
        passed = all(other.passed for other in differences if other.stage == stage)
        cosine = f"{each.cosine:.9f}" if each.cosine is not None else "-"
        verdict = "pass" if passed else "FAIL"
        lines.append(f"{stage:16} {each.difference:15.3g} {each.bound:9.2g} {cosine:>12}  {verdict:6} {each.case}")
    failed = sum(not each.passed for each in differences)
    lines.append(f"{len(differences)} comparisons, {failed} failed")
    return "\n".join(lines)


def _verify_embedder(
    folder: Path, package: Path, options: ReferenceOptions, say: Callable[[str], object]
) -> list[Difference]:
    reference, embedder = ReferenceEmbedder(folder, options), Qwen3VLEmbedder(package)
    differences: list[Difference] = []
    for case, item in embedding_cases().items():
        say(f"verify: {case}")
        differences += compare_embedding(embedder.package, case, item, reference.stages(item))
    return differences


def _verify_reranker(
    folder: Path, package: Path, options: ReferenceOptions, say: Callable[[str], object]
) -> list[Difference]:
    reference, reranker = ReferenceReranker(folder, options), Qwen3VLReranker(package)
    differences: list[Difference] = []
    for case, request in rerank_cases().items():
        say(f"verify: {case}")
        expected = reference.stages(request["query"], request["documents"][0], request["instruction"])
        differences += compare_score(reranker.package, case, request, expected)
    return differences


def _content(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key != "instruction"}
