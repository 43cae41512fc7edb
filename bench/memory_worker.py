"""Child of the memory benchmark: opens a package, embeds, and says on stdout when each stage is over.

`python -m bench.memory_worker STARTED PACKAGE MODE [THREADS]` (STARTED: the clock when the process was started). A line
on stdin is a stage of random content, `["text", TOKENS]`, `["batch", TEXTS]` of BATCH_TOKENS tokens each or
`["picture", TOKENS]`; the driver then reads the memory.
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np

from bench.speed_worker import reply_channel
from runtime import Qwen3VLEmbedder
from runtime.graphs.decoder import Prompt
from runtime.media.image import Visual
from runtime.prompts.encode import TokenSequence

MERGE = 2
BATCH_TOKENS = 128


def text(embedder: Qwen3VLEmbedder, tokens: int) -> np.ndarray:
    """The vector of that many random tokens, float32 [1, D]."""
    return _texts(embedder, 1, tokens)


def batch(embedder: Qwen3VLEmbedder, count: int) -> np.ndarray:
    """The vectors of that many texts, float32 [count, D]."""
    return _texts(embedder, count, BATCH_TOKENS)


def _texts(embedder: Qwen3VLEmbedder, count: int, tokens: int) -> np.ndarray:
    ids = np.random.default_rng(0).integers(0, 150_000, (count, tokens))
    prompts = [Prompt(TokenSequence(each, np.zeros(tokens, np.bool_), ())) for each in ids]
    return embedder.package.model.pooled(prompts, embedder.batch_tokens)


def picture(embedder: Qwen3VLEmbedder, tokens: int) -> np.ndarray:
    """The vector of a random picture of that many visual tokens, float32 [1, D]."""
    height = max(side for side in range(1, int(tokens**0.5) + 1) if tokens % side == 0)
    width = tokens // height
    manifest = embedder.package.manifest
    channels = manifest.vision.in_channels * manifest.vision.temporal_patch_size * manifest.vision.patch_size**2
    patches = np.random.default_rng(0).random((1, MERGE * MERGE * tokens, channels), np.float32)
    visual = Visual(patches, (1, MERGE * height, MERGE * width), None, MERGE)
    ids = np.full(tokens, manifest.tokens.image, np.int64)
    model = embedder.package.model
    prompt = model.prompt(TokenSequence(ids, np.ones(tokens, np.bool_), ((height, width),)), [visual])
    return model.pooled([prompt], embedder.batch_tokens)


STAGES: dict[str, Callable[[Qwen3VLEmbedder, int], np.ndarray]] = {"text": text, "batch": batch, "picture": picture}


def main() -> None:
    """Stages as the driver asks for them."""
    started = float(sys.argv[1])
    reply = reply_channel()
    threads = int(sys.argv[4]) if len(sys.argv) > 4 else None
    embedder = Qwen3VLEmbedder(sys.argv[2], memory=sys.argv[3], threads=threads)  # type: ignore[arg-type]
    reply({"stage": "open", "seconds": time.time() - started})
    for line in sys.stdin:
        name, tokens = json.loads(line)
        before = time.time()
        vector = STAGES[name](embedder, tokens)[0]
        reply({"seconds": time.time() - before, "since_start": time.time() - started, "vector": vector.tolist()})


if __name__ == "__main__":
    main()
