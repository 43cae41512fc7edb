"""Peers of the speed benchmark as long-lived processes that run one case when asked."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
STOP_SECONDS = 20
TORCH_TYPES = {"torch-bf16": "bfloat16", "torch-fp32": "float32"}


@dataclass(frozen=True)
class PeerOptions:
    """Where the peers' models are; `python` is the interpreter of those that need torch or openvino."""

    packages: Mapping[str, Path]
    checkpoint: Path | None
    openvino: Path | None
    llama: Path | None
    python: Path | None
    threads: int


class Peer:
    """A running peer and its facts (versions, settings)."""

    def __init__(self, name: str, command: list[str], threads: int):
        self.name = name
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )
        self.facts: dict[str, str] = self._answer()["facts"]

    def run(self, case: str) -> tuple[float, np.ndarray]:
        """Seconds, and the first rows of the output, float32 [N, D]."""
        assert self._process.stdin
        self._process.stdin.write(f"{case}\n")
        self._process.stdin.flush()
        answer = self._answer()
        output = np.frombuffer(base64.b64decode(answer["output"]), np.float32)
        return answer["seconds"], output.reshape(answer["rows"], -1)

    def stop(self) -> None:
        """Let it end by itself: its stdin closes. One that takes long to give back its memory is killed."""
        try:
            self._process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self._process.wait()}; its own message stands above.")
        answer: dict[str, Any] = json.loads(line)
        return answer


def start_peer(name: str, options: PeerOptions) -> Peer:
    """Start the peer called `name`; SystemExit where an option it needs is missing or it does not start."""
    other, threads = str(options.python or sys.executable), str(options.threads)
    if name in options.packages:
        command = [sys.executable, "-m", "bench.speed_package", str(options.packages[name].resolve()), threads]
        return Peer(name, command, options.threads)
    kind, _, variant = name.partition("-")
    if kind == "llama":
        if options.llama is None:
            raise SystemExit(f"{name} needs --llama.")
        file = options.llama.resolve() / f"{variant}.gguf"
        return Peer(name, [other, "-m", "bench.speed_llama", str(file), threads], options.threads)
    if kind not in ("torch", "openvino") or (kind == "torch" and name not in TORCH_TYPES):
        raise SystemExit(f"{name} is no --package and no known peer; see --help.")
    if options.checkpoint is None or (kind == "openvino" and options.openvino is None):
        raise SystemExit(f"{name} needs --checkpoint{' and --openvino' if kind == 'openvino' else ''}.")
    checkpoint = str(options.checkpoint.resolve())
    if kind == "torch":
        command = [other, "-m", "bench.speed_torch", checkpoint, TORCH_TYPES[name], threads]
        return Peer(name, command, options.threads)
    weights, _, precision = variant.partition("-")
    assert options.openvino
    folder = str(options.openvino.resolve())
    command = [other, "-m", "bench.speed_openvino", folder, checkpoint, weights, precision or "bf16", threads]
    return Peer(name, command, options.threads)
