"""What each precision and each way to store vectors costs in retrieval: `python -m bench.evidence FOLDER`.

The small trained embedder (`tiny`) finds OpenMoji's pictures, a style it was not trained on, by their
English names. FOLDER gets the packages, evidence.json and two plots; the table goes to stdout.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image

from bench.evidence_packages import FORMS, Form, export_form
from bench.evidence_plots import write_plots
from bench.openmoji import drawings, picture
from runtime import Qwen3VLEmbedder
from runtime.planning.machine import machine_facts
from runtime.search.index_files import taken
from runtime.search.vector_store import CANDIDATES, STORES, VECTORS, StoreName, VectorStore

SIDE = 96  # pixels: what the small embedder looks at
DIMENSIONS = (256, 128, 64, 32)
TOP = 10
NOT_FOUND = -2.0  # below every cosine


@dataclass(frozen=True, eq=False)
class Corpus:
    """Pictures and their English names, in the same order."""

    pictures: list[Image.Image]
    names: list[str]


@dataclass(frozen=True)
class Row:
    """A line of the table. Shares of 1 throughout; None where a column does not apply.

    `overlap` of float32's ten best pictures for each name, `cosine` mean over pictures and names to float32's.
    """

    name: str
    megabytes: float | None
    cosine: float | None
    overlap: float
    recall_1: float
    recall_10: float
    mrr: float
    ms_picture: float | None = None
    ms_text: float | None = None


@dataclass(frozen=True, eq=False)
class Embedded:
    """Unit vectors float32 [N, D] of pictures and names, and milliseconds of each."""

    pictures: np.ndarray
    names: np.ndarray
    ms_picture: float
    ms_text: float

    @property
    def similarity(self) -> np.ndarray:
        """Names × pictures."""
        return self.names @ self.pictures.T


def read_corpus(count: int | None = None, side: int = SIDE) -> Corpus:
    """All of OpenMoji's pictures, or the first `count` of every so many, of `side` pixels."""
    chosen = drawings()
    if count is not None:
        chosen = chosen[:: max(1, len(chosen) // count)][:count]
    return Corpus([picture(each, side) for each in chosen], [each.names["en"] for each in chosen])


def embed(package: Path, corpus: Corpus) -> Embedded:
    """Both sides; the session is warm when the clock starts."""
    embedder = Qwen3VLEmbedder(package)
    embedder.process([{"image": corpus.pictures[0]}, {"text": corpus.names[0]}])
    start = perf_counter()
    pictures = embedder.process([{"image": each} for each in corpus.pictures])
    between = perf_counter()
    names = embedder.process([{"text": each} for each in corpus.names])
    count = len(corpus.names)
    return Embedded(pictures, names, (between - start) / count * 1e3, (perf_counter() - between) / count * 1e3)


def best(similarity: np.ndarray, count: int) -> np.ndarray:
    """Columns int64 [N, count] of the largest in each row, the largest first."""
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


def overlap(similarity: np.ndarray, expected: np.ndarray) -> float:
    """Mean share of the TOP best of each row that both agree on."""
    pairs = zip(best(similarity, TOP), best(expected, TOP), strict=True)
    return float(np.mean([len(set(one) & set(other)) / TOP for one, other in pairs]))


def recall(similarity: np.ndarray) -> tuple[float, float, float]:
    """R@1, R@10 and MRR@10; the right ones are on the diagonal."""
    ranks = (similarity > np.diagonal(similarity)[:, None]).sum(axis=1)
    ranks[np.diagonal(similarity) <= NOT_FOUND] = len(ranks)
    reciprocal = np.where(ranks < TOP, 1 / (1 + ranks), 0)
    return float((ranks < 1).mean()), float((ranks < TOP).mean()), float(reciprocal.mean())


def package_row(form: Form, found: Embedded, exact: Embedded, megabytes: float) -> Row:
    """What a package gives."""
    cosines = [(getattr(found, side) * getattr(exact, side)).sum(axis=1).mean() for side in ("pictures", "names")]
    return Row(
        form.name,
        megabytes,
        float(np.mean(cosines)),
        overlap(found.similarity, exact.similarity),
        *recall(found.similarity),
        ms_picture=found.ms_picture,
        ms_text=found.ms_text,
    )


def vector_rows(exact: Embedded) -> Iterator[Row]:
    """Float32's vectors cut and stored in each way; a query stays as it is."""
    for store in STORES:
        for dimensions in DIMENSIONS:
            if (store, dimensions) == ("float32", max(DIMENSIONS)):
                continue
            similarity = stored_similarity(exact, store, dimensions)
            label = f"vectors {store}, {dimensions} numbers"
            yield Row(label, None, None, overlap(similarity, exact.similarity), *recall(similarity))


def stored_similarity(exact: Embedded, store: StoreName, dimensions: int) -> np.ndarray:
    """Names × pictures as a search for TOP finds them; NOT_FOUND where a picture is not among what is compared."""
    pictures, names = (_cut(each, dimensions) for each in (exact.pictures, exact.names))
    kept = VectorStore(store, dimensions)
    parts = kept.encode(pictures)
    similarity = np.full((len(names), len(pictures)), NOT_FOUND, np.float32)
    for row, name in zip(similarity, names, strict=True):
        found = kept.nearest(parts[VECTORS], name, TOP * CANDIDATES[store])
        row[found] = kept.cosines(taken(parts, found), name)
    return similarity


def _cut(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    cut = vectors[:, :dimensions]
    unit: np.ndarray = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    return unit


def format_table(rows: list[Row]) -> str:
    """Markdown."""
    header = ("", "MB", "cosine", "top 10", "R@1", "R@10", "MRR@10", "ms a picture", "ms a text")
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    for row in rows:
        shares = (row.overlap, row.recall_1, row.recall_10, row.mrr)
        numbers = [_shown(row.megabytes, 1), _shown(row.cosine, 4), *(_shown(each, 3) for each in shares)]
        numbers += [_shown(row.ms_picture, 2), _shown(row.ms_text, 2)]
        lines.append(f"| {row.name} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def measured(folder: Path, corpus: Corpus) -> list[Row]:
    """Every form, then every way to store float32's vectors."""
    exact = embed(export_form(FORMS[0], folder), corpus)
    rows = []
    for form in FORMS:
        package = export_form(form, folder)
        megabytes = sum(file.stat().st_size for file in package.iterdir()) / 1e6
        rows.append(package_row(form, embed(package, corpus), exact, megabytes))
        print(format_table(rows[-1:]).splitlines()[-1], flush=True)
    return [*rows, *vector_rows(exact)]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    corpus = read_corpus()
    rows = measured(options.folder, corpus)
    print(", ".join(f"{name} {fact}" for name, fact in machine_facts().items()))
    print(f"{len(corpus.names)} pictures\n\n{format_table(rows)}")
    content = {"machine": machine_facts(), "pictures": len(corpus.names), "rows": [asdict(row) for row in rows]}
    (options.folder / "evidence.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_plots(rows, options.folder)


if __name__ == "__main__":
    main()
