"""What reranking adds to the small embedder's recall, and what `--int8` keeps of it, through the runtime.

    python -m bench.evidence_reranking FOLDER [--every 4]

exports what FOLDER lacks, takes the float32 embedder's 20 best pictures for every so-manieth name, and reranks them.
"""

import argparse
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
        scores = np.array(
            [
                score(reranker, corpus.names[at], [looked_at[i] for i in some])
                for at, some in zip(chosen, candidates, strict=True)
            ]
        )
        milliseconds = (perf_counter() - start) * 1e3 / scores.size
        exact = scores if exact is None else exact
        tau = np.mean([kendall(one, other) for one, other in zip(exact, scores, strict=True)])
        hit = (np.take_along_axis(candidates, scores.argmax(1)[:, None], 1)[:, 0] == chosen).mean()
        print(f"| `--{precision}` | {hit:.3f} | {tau:.3f} | {milliseconds:.2f} |", flush=True)


def score(reranker: Qwen3VLReranker, name: str, pictures: list[Image.Image]) -> list[float]:
    """Probabilities of "yes" for pictures under a name."""
    return reranker.process({"query": {"text": name}, "documents": [{"image": each} for each in pictures]})


def exported(folder: Path, model: str, precision: str) -> Path:
    """The package of a small model, made where it is missing."""
    package = folder / f"{model}-{precision}"
    if not package.is_dir():
        export_package(find_checkpoint(model), package, ExportOptions(model, precision))
    return package


if __name__ == "__main__":
    main()
