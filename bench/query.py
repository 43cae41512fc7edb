"""What a short query takes with and without its preamble kept: `python -m bench.query PACKAGE…`, a table on stdout.

Milliseconds of `process` with one text, tokenising included, both ways in interleaved rounds.
"""

import argparse
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from runtime import Qwen3VLEmbedder
from runtime.graphs.past import KeptPasts
from runtime.planning.machine import machine_facts

QUERIES = (
    "a duck",
    "red bicycle leaning on a wall",
    "how do I replace the battery of a smoke alarm",
    "invoices from March with a total above 1,000 euros and no signature",
)


def milliseconds(embedder: Qwen3VLEmbedder, preambles: KeptPasts, text: str) -> tuple[float, np.ndarray]:
    """One query, and its vector [1, D]."""
    embedder.package.model.preambles = preambles
    start = perf_counter()
    vector = embedder.process([{"text": text}])
    return 1000 * (perf_counter() - start), vector


def measure(embedder: Qwen3VLEmbedder, text: str, rounds: int) -> str:
    """A query's part of a line of the table."""
    kept = KeptPasts()
    for _ in range(2):  # it is computed the second time
        milliseconds(embedder, kept, text)
    times: tuple[list[float], list[float]] = ([], [])
    difference = 0.0
    for _ in range(rounds):
        vectors = []
        for way, preambles in enumerate((KeptPasts(), kept)):
            taken, vector = milliseconds(embedder, preambles, text)
            times[way].append(taken)
            vectors.append(vector)
        difference = max(difference, float(np.abs(vectors[1] - vectors[0]).max()))
    apart, together = (f"{median(each):.0f} ({min(each):.0f})" for each in times)
    ratio = median(one / other for one, other in zip(*times, strict=True))
    return f"{len(text.split())} | {apart} | {together} | {ratio:.2f} | {difference:.0e}"


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("packages", type=Path, nargs="+", metavar="PACKAGE", help="of an embedder")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(machine_facts())
    print("| package | words | computed | kept | times faster | largest difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    for package in options.packages:
        embedder = Qwen3VLEmbedder(package)
        for text in QUERIES:
            print(f"| {package.name} | {measure(embedder, text, options.rounds)} |", flush=True)


if __name__ == "__main__":
    main()
