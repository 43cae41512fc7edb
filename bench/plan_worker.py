"""Child of the plan benchmark: opens a package, runs inputs of the sizes it is told, says on stdout how long each took.

`python -m bench.plan_worker STARTED PACKAGE MODE`. A line on stdin is a stage: `["texts", [TEXT, ...]]`,
`["picture", [WIDTH, HEIGHT]]` or `["video", PATH]`; the driver then reads the memory.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.speed_worker import reply_channel
from runtime import Qwen3VLEmbedder, Qwen3VLReranker
from runtime.manifest import Manifest
from runtime.planning.workload import QUERY

ROUNDS, ENOUGH = 3, 20.0  # a stage is run again until it took this many seconds

Item = dict[str, Any]


def opened(package: Path, mode: Any) -> Callable[[list[Item]], object]:
    """`process` of the package's own class; documents stand beside the query of the plan."""
    if Manifest.read(package).task == "embedding":
        return Qwen3VLEmbedder(package, memory=mode).process
    reranker = Qwen3VLReranker(package, memory=mode)
    return lambda items: reranker.process({"query": {"text": QUERY.content.texts[0]}, "documents": items})


def inputs(kind: str, content: Any) -> list[Item]:
    """Texts, a video or a picture of noise."""
    if kind == "texts":
        return [{"text": text} for text in content]
    if kind == "video":
        return [{"video": content}]
    width, height = content
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    return [{"image": Image.fromarray(pixels)}]


def main() -> None:
    """Stages as the driver asks for them."""
    started = float(sys.argv[1])
    reply = reply_channel()
    process = opened(Path(sys.argv[2]), sys.argv[3])
    reply({"seconds": time.time() - started})
    for line in sys.stdin:
        items = inputs(*json.loads(line))
        seconds: list[float] = []
        while len(seconds) < ROUNDS and sum(seconds) < ENOUGH:
            before = time.perf_counter()
            process(items)
            seconds.append(time.perf_counter() - before)
        reply({"seconds": min(seconds)})


if __name__ == "__main__":
    main()
