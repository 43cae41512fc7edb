"""What reranking adds to the small embedder's recall, and what `--int8` keeps of it, through the runtime.

    python -m bench.evidence_reranking FOLDER [--every 4]

exports what FOLDER lacks, takes the float32 embedder's 20 best pictures for every so-manieth name, and reranks them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image

from bench.evidence import best, embed, read_corpus
from bench.openmoji import drawings, picture
from export.package import ExportOptions, export_package
from export.source import find_checkpoint
from quant.agreement import kendall
from runtime import Qwen3VLReranker

RECALLED, SIDE = 20, 128  # candidates; pixels, what the small reranker looks at
FORMS = ("fp32", "int8", "int4")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=4)
    options = parser.parse_args()
    corpus = read_corpus()
    looked_at = [picture(each, SIDE) for each in drawings()]
    found = embed(exported(options.folder, "tiny", "fp32"), corpus)
    similarity = found.similarity
    chosen = np.arange(0, len(similarity), options.every)
    candidates = best(similarity, RECALLED)[chosen]
    print(
        f"{len(chosen)} names, {similarity.shape[1]} pictures, R@1 before {(candidates[:, 0] == chosen).mean():.3f}, "
    )
    print(f"the right one among the {RECALLED} {(candidates == chosen[:, None]).any(1).mean():.3f}")
    print("\n| | R@1 reranked | Kendall τ | ms a pair |\n| --- | --- | --- | --- |")
    exact: np.ndarray | None = None
    for precision in FORMS:
        reranker = Qwen3VLReranker(exported(options.folder, "tiny-reranker", precision))
        start = perf_counter()
        scores = reranked(reranker, [corpus.names[at] for at in chosen], candidates, looked_at)
        milliseconds = (perf_counter() - start) * 1e3 / scores.size
        exact = scores if exact is None else exact
        tau = same_order(exact, scores)
        hit = (np.take_along_axis(candidates, scores.argmax(1)[:, None], 1)[:, 0] == chosen).mean()
        print(f"| `--{precision}` | {hit:.3f} | {tau:.3f} | {milliseconds:.2f} |", flush=True)


def reranked(
    reranker: Qwen3VLReranker, names: Sequence[str], candidates: np.ndarray, pictures: Sequence[Image.Image]
) -> np.ndarray:
    """Probabilities of "yes" [N, C] for each name's candidates, indexes int64 [N, C] of pictures."""
    requests = (
        {"query": {"text": name}, "documents": [{"image": pictures[index]} for index in some]}
        for name, some in zip(names, candidates, strict=True)
    )
    return np.array([reranker.process(each) for each in requests])


def same_order(scores: np.ndarray, others: np.ndarray) -> float:
    """Kendall's τ of two [N, C], averaged over the rows."""
    return float(np.mean([kendall(*each) for each in zip(scores, others, strict=True)]))


def exported(folder: Path, model: str, precision: str) -> Path:
    """The package of a small model, made where it is missing."""
    package = folder / f"{model}-{precision}"
    if not package.is_dir():
        export_package(find_checkpoint(model), package, ExportOptions(model, precision))
    return package


if __name__ == "__main__":
    main()
