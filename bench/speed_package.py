"""Peer of the speed benchmark: one of our packages. `python -m bench.speed_package PACKAGE THREADS`."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

from bench.speed_cases import IMAGE_PAD, MERGE, Case, input_ids, patches
from bench.speed_worker import Run, reply_channel, serve
from runtime.graphs.decoder import Prompt
from runtime.graphs.graph import OpenGraph
from runtime.graphs.memory import MemoryPolicy, memory_policy
from runtime.graphs.model import Model
from runtime.graphs.session import require_providers
from runtime.graphs.target import TARGETS
from runtime.manifest import Manifest
from runtime.media.image import Visual
from runtime.prompts.encode import TokenSequence


def open_model(folder: Path, threads: int, open_graph: OpenGraph | None = None) -> Model:
    """The sessions of a package on the CPU, in the normal mode unless `open_graph` opens them."""
    manifest = Manifest.read(folder)
    providers = require_providers(None, manifest.target, folder)
    return Model(folder, manifest, providers, threads, open_graph or policy_of(manifest).open_graph)


def policy_of(manifest: Manifest) -> MemoryPolicy:
    """What the normal mode means for a package."""
    return memory_policy("normal", manifest.matrices, TARGETS[manifest.target])


def prepare(model: Model, case: Case) -> Run:
    """From ids and patches to pooled outputs [B, D], or to the vision tower's tokens [V, D]."""
    visuals: list[Visual] = []
    blocks: tuple[tuple[int, int], ...] = ()
    if case.grid is not None:
        rows, columns = case.grid
        visuals = [Visual(patches(case)[None], (1, rows, columns), None, MERGE)]
        blocks = ((rows // MERGE, columns // MERGE),)
    batch_tokens = policy_of(model.manifest).batch_tokens
    sequences = [TokenSequence(ids, ids == IMAGE_PAD, blocks) for ids in input_ids(case)]

    def run() -> np.ndarray:
        features = tuple(model.vision.features(visuals))
        if not case.decoder:
            return features[0].tokens
        return model.pooled([Prompt(each, features) for each in sequences], batch_tokens)

    return run


def main() -> None:
    """Serve the package named on the command line."""
    reply = reply_channel()
    model = open_model(Path(sys.argv[1]), int(sys.argv[2]))
    facts = {"onnxruntime": onnxruntime.__version__, "precision": model.manifest.precision}
    serve(reply, facts, lambda case: prepare(model, case))


if __name__ == "__main__":
    main()
