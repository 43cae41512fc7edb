"""`python -m runtime verify`: whether a package gives on this machine what it gave where it was made.

Packages of the published models are compared with the announcement's figures too, where the network gives its picture.
"""

import argparse
from collections.abc import Generator
from typing import Any

from runtime.commands.options import Lines, add_command, add_resources
from runtime.embedder import Qwen3VLEmbedder
from runtime.errors import MediaError
from runtime.golden import Agreement, Golden, agreements, golden_results
from runtime.manifest import Manifest
from runtime.media.download import FetchLimits
from runtime.media.source import load_image
from runtime.planning.machine import UNKNOWN, machine_facts
from runtime.published import FIGURES, PICTURE, published_agreements
from runtime.reranker import Qwen3VLReranker

MODELS = {"embedding": Qwen3VLEmbedder, "reranker": Qwen3VLReranker}


def add_verify(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    command = add_command(
        commands, "verify", verify, "compute a package's golden inputs and compare with what it gave when it was made"
    )
    add_resources(command)


def verify(options: argparse.Namespace, complaints: list[str]) -> Lines:
    """A line an input and one about all; complaints for inputs that fail. Raises PackageError."""
    manifest = Manifest.read(options.package)
    manifest.check(options.package)
    golden = Golden.read(options.package, manifest)
    here = machine_facts()["instructions"]
    yield f"made with {golden.instructions}"
    yield f"here      {here}"
    model = MODELS[manifest.task](
        options.package, batch_tokens=options.batch_tokens, threads=options.threads, memory=options.memory
    )
    found = golden_results(model, golden)
    # In the low mode some products are added up in another order.
    same_kernels = here == golden.instructions != UNKNOWN and options.memory == "normal"
    results = agreements(golden, found, manifest.precision, same_kernels)
    yield from map(_line, results)
    announced: list[Agreement] = []
    if manifest.name in FIGURES:
        announced = yield from _announced(model, manifest)
    failed, others = ([each for each in some if not each.passed] for some in (results, announced))
    if failed:
        complaints.append(
            f"{options.package} does not give here what it should ({len(failed)} of {len(results)} comparisons); "
            "do not use it here, and report this output."
        )
    elif others:
        complaints.append(
            f"{options.package} gives here what it should, and not what was announced of {manifest.name} "
            f"({len(others)} of {len(announced)} comparisons); if its checkpoint is no other one of that name, do not "
            "use it, and report this output."
        )
    else:
        yield f"{options.package} passes: {manifest.name}, {manifest.precision} for {manifest.target}"


def _announced(model: Qwen3VLEmbedder | Qwen3VLReranker, manifest: Manifest) -> Generator[str, None, list[Agreement]]:
    """Compare with the announcement of a published model, where the network gives its picture."""
    try:
        picture = load_image(PICTURE, FetchLimits())
    except MediaError as error:
        yield f"not compared with the announcement: {error}"
        return []
    results = published_agreements(model, manifest.name, manifest.precision, picture)
    yield from map(_line, results)
    return results


def _line(each: Agreement) -> str:
    kind, sign = ("cosine", "≥") if each.is_cosine else ("difference", "≤")
    verdict = "pass" if each.passed else "FAIL"
    return f"{verdict}  {kind} {each.value:.7f} to {each.against} ({sign} {each.bound:g})  {each.name}"
