"""What reranking adds to the small embedder's recall, and what quantisation leaves of it, through the runtime.

    python -m bench.evidence_reranking FOLDER [--every 1]

makes the packages that FOLDER lacks, takes the float32 embedder's 20 best pictures for each name, and reranks them.
"""

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np

from bench.evidence import Corpus, best, embed, read_corpus
from bench.evidence_packages import FORMS, RERANKER_FORMS, export_form
from quant.agreement import kendall
from runtime import Qwen3VLReranker

RECALLED = 20
SIDE = 128  # pixels: what the small reranker looks at


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, help="so many names from one to the next (default: all)")
    options = parser.parse_args()
    similarity = embed(export_form(FORMS[0], options.folder), read_corpus()).similarity
    corpus = read_corpus(side=SIDE)
    chosen = np.arange(0, len(similarity), options.every)
    candidates = best(similarity, RECALLED)[chosen]
    among = float((candidates == chosen[:, None]).any(1).mean())
    print(f"{len(chosen)} names, {len(corpus.pictures)} pictures; the right one is the embedder's first for", end=" ")
    print(f"{float((candidates[:, 0] == chosen).mean()):.3f} of them, among its {RECALLED} for {among:.3f}\n")
    print("| | R@1 reranked | Kendall τ | ms a pair |\n| --- | --- | --- | --- |")
    exact: np.ndarray | None = None
    for form in RERANKER_FORMS:
        reranker = Qwen3VLReranker(export_form(form, options.folder))
        start = perf_counter()
        scores = reranked(reranker, corpus, chosen, candidates)
        milliseconds = (perf_counter() - start) * 1e3 / scores.size
        exact = scores if exact is None else exact
        found = hits(scores, chosen, candidates)
        print(f"| {form.name} | {found:.3f} | {same_order(exact, scores):.3f} | {milliseconds:.2f} |", flush=True)


def reranked(reranker: Qwen3VLReranker, corpus: Corpus, chosen: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Probabilities of "yes" [N, C] for the names `chosen` [N] and each one's candidates, pictures [N, C]."""
    requests = (
        {"query": {"text": corpus.names[name]}, "documents": [{"image": corpus.pictures[index]} for index in some]}
        for name, some in zip(chosen, candidates, strict=True)
    )
    return np.array([reranker.process(each) for each in requests])


def hits(scores: np.ndarray, chosen: np.ndarray, candidates: np.ndarray) -> float:
    """R@1 of candidates [N, C] in the order of their scores."""
    first = np.take_along_axis(candidates, scores.argmax(1)[:, None], 1)[:, 0]
    return float((first == chosen).mean())


def same_order(scores: np.ndarray, others: np.ndarray) -> float:
    """Kendall's τ of two [N, C], averaged over the rows."""
    return float(np.mean([kendall(*each) for each in zip(scores, others, strict=True)]))


if __name__ == "__main__":
    main()
