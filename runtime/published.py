"""What the announcement and the model cards print for their example, to be found again with the real weights.

Four queries, three documents: a text, a picture from the network, both. Sources: the announcement
(https://qwen.ai/blog?id=qwen3-vl-embedding) for the two 2B models, the card of Qwen3-VL-Embedding-8B. For
Qwen3-VL-Reranker-8B no figures of its own were found.
"""

from typing import Any

import numpy as np
from PIL import Image

from runtime.embedder import Qwen3VLEmbedder
from runtime.golden import Agreement
from runtime.reranker import Qwen3VLReranker

PICTURE = "https://qianwen-res.oss-cn-beijing.aliyuncs.com/Qwen-VL/assets/demo.jpeg"
QUERIES = (
    "A woman playing with her dog on a beach at sunset.",
    "Pet owner training dog outdoors near water.",
    "Woman surfing on waves during a sunny day.",
    "City skyline view from a high-rise building at night.",
)
DOCUMENT = (
    "A woman shares a joyful moment with her golden retriever on a sun-drenched beach at sunset, as the dog offers its "
    "paw in a heartwarming display of companionship and trust."
)
RERANK_INSTRUCTION = "Retrieval relevant image or text with user's query"
# A row a query; printed from bfloat16 and float16, hence the short fractions. A reranker's is of the first query.
FIGURES = {
    "Qwen3-VL-Embedding-2B": (
        (0.83203125, 0.74609375, 0.73046875),
        (0.5390625, 0.373046875, 0.48046875),
        (0.404296875, 0.326171875, 0.357421875),
        (0.1298828125, 0.06884765625, 0.10595703125),
    ),
    "Qwen3-VL-Embedding-8B": (
        (0.74267578125, 0.6630859375, 0.6328125),
        (0.443603515625, 0.33349609375, 0.396484375),
        (0.3671875, 0.2354736328125, 0.289306640625),
        (0.060821533203125, -0.01557159423828125, 0.0165863037109375),
    ),
    "Qwen3-VL-Reranker-2B": ((0.8408790826797485, 0.6197134852409363, 0.7778129577636719),),
}
# Allowed differences. The figures are of half precision and a graphics card, which alone are worth some 0.01; the rest
# is what a precision may cost. Chosen without the real weights, which were not at hand.
BOUNDS = {"fp32": 0.02, "bf16": 0.02, "int8-portable": 0.03, "int8": 0.04}
LOOSEST = 0.12  # int4


def published_agreements(
    model: Qwen3VLEmbedder | Qwen3VLReranker, name: str, precision: str, picture: Image.Image
) -> list[Agreement]:
    """The figures of the model `name`, one of FIGURES, and what a package gives: an agreement a query."""
    expected = np.array(FIGURES[name])
    differences = np.abs(_results(model, picture) - expected).max(axis=1)
    bound = BOUNDS.get(precision, LOOSEST)
    return [
        Agreement(f"announced for {query!r}", "the announcement", float(difference), bound, False)
        for query, difference in zip(QUERIES, differences, strict=False)
    ]


def _results(model: Qwen3VLEmbedder | Qwen3VLReranker, picture: Image.Image) -> np.ndarray:
    """Similarities [4, 3] of an embedder, scores [1, 3] of a reranker."""
    documents: list[dict[str, Any]] = [{"text": DOCUMENT}, {"image": picture}, {"text": DOCUMENT, "image": picture}]
    if isinstance(model, Qwen3VLEmbedder):
        vectors = model.process([*({"text": query} for query in QUERIES), *documents])
        similarities: np.ndarray = vectors[: len(QUERIES)] @ vectors[len(QUERIES) :].T
        return similarities
    request = {"instruction": RERANK_INSTRUCTION, "query": {"text": QUERIES[0]}, "documents": documents}
    return np.array([model.process(request)])
