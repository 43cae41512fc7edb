"""A process that forks with a package open: its children embed, whatever its other threads were doing, and end."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_shapes import TINY_2B

if not hasattr(os, "fork"):
    pytest.skip("this system has no fork", allow_module_level=True)

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
OPEN = """
import os, sys, threading
import numpy as np
from PIL import Image
from runtime import Qwen3VLEmbedder

embedder = Qwen3VLEmbedder(sys.argv[1], threads=2)
items = [{"text": "stone " * 60}, {"image": Image.effect_noise((100, 100), 50).convert("RGB")}]
"""
WAIT = "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"


def output(code: str, package: Path) -> str:
    command = [sys.executable, "-W", "ignore", "-c", OPEN + code + WAIT, package]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, encoding="utf-8", timeout=30)
    assert done.stderr == ""
    return done.stdout


def test_a_child_embeds_and_ends(package: Callable[..., Path]) -> None:
    """What it has of the parent's session would wait at its end for threads that there are only in the parent."""
    code = """
expected = embedder.process(items)
child = os.fork()
if not child:
    assert np.array_equal(embedder.process(items), expected)
    embedder.release_vision()
    sys.exit(7)
assert np.array_equal(embedder.process(items), expected)
"""
    assert output(code, package(TINY_2B, "embedding")) == "7\n"


def test_a_child_does_not_wait_for_a_thread_of_its_parent(package: Callable[..., Path]) -> None:
    """The parent is just opening its vision encoder."""
    code = """
vision, opening, goes_on = embedder.package.model.vision, threading.Event(), threading.Event()
open_graph = vision._open_graph

def slow():
    opening.set()
    goes_on.wait()
    return open_graph()

vision._open_graph = slow
thread = threading.Thread(target=vision.open)
thread.start()
opening.wait()
child = os.fork()
if not child:
    vision._open_graph = open_graph
    os._exit(len(embedder.process(items)))
goes_on.set()
thread.join()
"""
    assert output(code, package(TINY_2B, "embedding")) == "2\n"
