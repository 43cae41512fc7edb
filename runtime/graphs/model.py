"""The two graphs of a package."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from runtime.graphs.batching import Batches
from runtime.graphs.decoder import Decoder, Prompt
from runtime.graphs.graph import OpenGraph, open_graph
from runtime.graphs.past import KeptPasts
from runtime.graphs.probe import products_saturate
from runtime.graphs.vision import VisionEncoder
from runtime.manifest import DECODER, DECODER_UINT8, VISION, VISION_UINT8, Manifest
from runtime.media.image import Visual
from runtime.prompts.encode import TokenSequence

UINT8_GRAPHS = {DECODER: DECODER_UINT8, VISION: VISION_UINT8}


class Model:
    """Vision encoder and decoder of one package. Runs may overlap in several threads.

    `open_graph(path, providers, threads)` opens each of them; comparing packages opens them with more outputs.
    Unless `keep_vision`, the vision encoder is released after each use.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        providers: Sequence[str],
        threads: int,
        open_graph: OpenGraph = open_graph,
        keep_vision: bool = True,
    ):
        self.manifest = manifest
        self.decoder = Decoder(open_graph(folder / graph_file(manifest, DECODER), providers, threads), manifest)
        self.preambles = KeptPasts()
        open_vision = partial(open_graph, folder / graph_file(manifest, VISION), providers, threads)
        self.vision = VisionEncoder(manifest.vision, open_vision, self.decoder.target.batch_patches, keep_vision)

    def prompt(self, sequence: TokenSequence, visuals: Sequence[Visual] = ()) -> Prompt:
        """A token sequence with the features of its visuals."""
        return Prompt(sequence, tuple(self.vision.features(visuals)))

    def pooled(self, prompts: Sequence[Prompt], batch_tokens: int | None = None) -> np.ndarray:
        """`embedding` float32 [N, D] or `logit` float32 [N], in the order of the prompts.

        They go through the decoder together up to `batch_tokens`, longer ones in pieces of as many.
        """
        found = dict[int, np.ndarray]()
        batch_tokens = batch_tokens or self.decoder.target.batch_tokens
        for indexes, outputs in Batches(self.decoder, batch_tokens).pooled(prompts):
            found.update(zip(indexes, outputs, strict=True))
        return np.stack([found[index] for index in range(len(prompts))])


def graph_file(manifest: Manifest, name: str) -> str:
    """The file of the graph `name` to open on this processor: not the one whose products would saturate."""
    other = UINT8_GRAPHS[name]
    return other if other in {file.name for file in manifest.files} and products_saturate() else name
