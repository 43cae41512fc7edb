"""A peer's side of the speed benchmark: one case per line on stdin, one JSON object per line on stdout.

First line out: the facts of the peer (versions, settings). Then for each case {"seconds", "rows", "output"}: `output`
are the first `rows` rows, float32, in base64. Needs numpy only.
"""

import base64
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.speed_cases import CASES, COMPARED_ROWS, Case

Run = Callable[[], np.ndarray]


def reply_channel() -> Callable[[dict[str, Any]], None]:
    """A function that answers the driver; from now on everything printed goes to stderr (libraries print)."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=channel, flush=True)

    return reply


def serve(reply: Callable[[dict[str, Any]], None], facts: dict[str, str], prepare: Callable[[Case], Run]) -> None:
    """Answer until stdin closes. `prepare` is not timed, and called once a case; what it returns is timed."""
    prepared: dict[str, Run] = {}
    reply({"facts": facts})
    for line in sys.stdin:
        name = line.strip()
        if name not in prepared:
            prepared[name] = prepare(CASES[name])
        before = time.perf_counter()
        output = prepared[name]()
        seconds = time.perf_counter() - before
        rows = np.ascontiguousarray(output[:COMPARED_ROWS], np.float32)
        reply({"seconds": seconds, "rows": len(rows), "output": base64.b64encode(rows.tobytes()).decode()})
