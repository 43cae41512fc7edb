"""What a shared query saves a reranker: `python -m bench.rerank PACKAGE`, a table of seconds on stdout.

Three ways to score documents for one query, in interleaved rounds: each pair by itself with its pictures encoded again
(as the reference does), each pair by itself with the pictures encoded once, and the query computed once for all.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from runtime import Qwen3VLReranker
from runtime.graphs.past import KeptPasts
from runtime.graphs.windows import Entry, Request
from runtime.planning.machine import machine_facts
from runtime.prompts.inputs import parse_request

WORDS = "the river bends around an old mill where boats wait for rain and nobody counts summer days"
PICTURE = (1024, 1024)  # pixels: 32 × 32 = 1,024 visual tokens
Way = Callable[[Qwen3VLReranker, dict[str, Any]], list[float]]


def text(tokens: int, seed: int) -> str:
    """About as many tokens as words."""
    return " ".join(np.random.default_rng(seed).choice(WORDS.split(), tokens))


def requests() -> Iterator[tuple[str, dict[str, Any]]]:
    """The cases of the table: what they are called, and what `process` is given."""
    pixels = np.random.default_rng(0).integers(0, 256, (*PICTURE, 3), dtype=np.uint8)
    documents = [{"text": text(100, seed)} for seed in range(20)]
    yield "text query, 20 documents of 100 tokens", {"query": {"text": text(12, 99)}, "documents": documents}
    short = [{"text": text(25, seed)} for seed in range(40)]
    yield "text query, 40 documents of 25 tokens", {"query": {"text": text(12, 99)}, "documents": short}
    yield (
        "picture query (1,024 tokens), 20 documents of 100 tokens",
        {
            "query": {"image": Image.fromarray(pixels)},
            "documents": documents,
        },
    )


def pair_by_pair(reranker: Qwen3VLReranker, request: dict[str, Any]) -> list[float]:
    """Each pair a request of its own, nothing kept in between."""
    scores = []
    for each in request["documents"]:
        reranker.package.model.preambles = KeptPasts()
        scores += reranker.process({**request, "documents": [each]})
    return scores


def pictures_once(reranker: Qwen3VLReranker, request: dict[str, Any]) -> list[float]:
    """The query's pictures encoded once, each pair through the decoder by itself."""
    parsed = parse_request(request)
    query = reranker._load(parsed.query, parsed, "query")
    features = Request(reranker.package.model, reranker.batch_tokens).features(query.visuals, "query")
    scores = []
    for entry in reranker._entries(query, parsed, None):
        reranker.package.model.preambles = KeptPasts()
        alone = Request(reranker.package.model, reranker.batch_tokens)
        scores += [
            _probability(logits) for _, logits in alone.pooled([Entry(0, entry.where, entry.sequence, ())], features)
        ]
    return scores


def together(reranker: Qwen3VLReranker, request: dict[str, Any]) -> list[float]:
    """What `process` does in the first request."""
    reranker.package.model.preambles = KeptPasts()
    return reranker.process(request)


def _probability(logits: np.ndarray) -> float:
    return float(1 / (1 + np.exp(-logits[0].astype(np.float64))))


WAYS: dict[str, Way] = {
    "pair by pair": pair_by_pair,
    "pictures encoded once": pictures_once,
    "query computed once": together,
}


def main() -> None:
    """Print the machine and one row a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default="", help="only cases whose name holds this")
    parser.add_argument("--documents", type=int, help="only so many of each case")
    options = parser.parse_args()
    print(", ".join(f"{name} {fact}" for name, fact in machine_facts().items()), "\n")
    print(f"| seconds, median of {options.rounds} (best) | {' | '.join(WAYS)} | ratios | largest difference |")
    print("| --- " * (len(WAYS) + 3) + "|")
    reranker = Qwen3VLReranker(options.package)
    for name, request in requests():
        if options.cases not in name:
            continue
        request["documents"] = request["documents"][: options.documents]
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        scores: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for way, run in WAYS.items():
                start = perf_counter()
                scores[way] = run(reranker, request)
                seconds[way].append(perf_counter() - start)
        last = median(seconds["query computed once"])
        ratios = ", ".join(f"{median(each) / last:.2f}" for each in seconds.values())
        cells = " | ".join(f"{median(each):.2f} ({min(each):.2f})" for each in seconds.values())
        difference = max(np.abs(np.subtract(each, scores["pair by pair"])).max() for each in scores.values())
        print(f"| {name} | {cells} | {ratios} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    main()
