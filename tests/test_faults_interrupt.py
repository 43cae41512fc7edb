"""Ctrl-C at any moment: `process` is left, the model stays usable; a command ends in one line and no half file."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_shapes import TINY_2B
from PIL import Image

from runtime.graphs.interrupt import interruptible

if sys.platform == "win32":
    pytest.skip("Windows sends no signal to a single process", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("ctrl_c")

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
PIPE_BYTES = 1 << 20
MOMENTS = 5
# Interrupts itself while a batch is under way: inputs that share a long beginning, in several windows, and pictures.
LIBRARY = """
import os, random, signal, sys, threading, time
import numpy as np
from PIL import Image
from runtime import Qwen3VLEmbedder, Qwen3VLReranker

picture = Image.effect_noise((200, 200), 50).convert("RGB")
documents = [{"text": "stone " * (60 + number % 40) + str(number)} for number in range(300)]
documents += [{"image": picture}, {"image": picture.rotate(90)}]
if sys.argv[2] == "embedding":
    embedder = Qwen3VLEmbedder(sys.argv[1], batch_tokens=512)
    run = lambda: embedder.process(documents)
else:
    reranker = Qwen3VLReranker(sys.argv[1], batch_tokens=512)
    run = lambda: np.array(reranker.process({"query": {"text": "bird " * 60}, "documents": documents}))
run()
start = time.monotonic()
expected = run()
duration, moments, left = time.monotonic() - start, random.Random(1), 0
for _ in range(int(sys.argv[3])):
    timer = threading.Timer(moments.uniform(0, duration), os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        run()
        timer.join()
        time.sleep(10)  # the signal comes now at the latest
    except KeyboardInterrupt:
        left += 1
    timer.join()
    assert np.abs(run() - expected).max() <= 1e-6
print(left)
"""


@pytest.mark.parametrize("task", ["embedding", "reranker"])
def test_the_model_stays_usable(package: Callable[..., Path], task: str) -> None:
    command = [sys.executable, "-c", LIBRARY, package(TINY_2B, task), task, str(MOMENTS)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{MOMENTS}\n", "")


def test_a_run_is_stopped_in_the_middle() -> None:
    """Without `stop` it would go on for ever."""
    stopped = threading.Event()

    def run() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        stopped.wait(timeout=60)

    with pytest.raises(KeyboardInterrupt):
        interruptible(run, stopped.set)
    assert stopped.is_set()
    assert interruptible(lambda: 3, lambda: pytest.fail("nothing came")) == 3


def test_a_run_s_own_error_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 / 0, lambda: pytest.fail("nothing came"))


def test_other_threads_run_by_themselves() -> None:
    ran: list[threading.Thread] = []
    thread = threading.Thread(
        target=lambda: interruptible(lambda: ran.append(threading.current_thread()), lambda: None)
    )
    thread.start()
    thread.join()
    assert ran == [thread]


def test_an_exit_handler_can_run_too() -> None:
    code = """
import atexit
from runtime.graphs.interrupt import interruptible
show = lambda: print(interruptible(lambda: 7, lambda: None))
atexit.register(show)
show()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, encoding="utf-8", timeout=60
    )
    assert (done.stdout, done.stderr) == ("7\n7\n", "")


def test_a_forked_process_can_run_too() -> None:
    code = """
import os
from runtime.graphs.interrupt import interruptible
assert interruptible(lambda: 1, lambda: None) == 1
child = os.fork()
if not child:
    os._exit(interruptible(lambda: 7, lambda: None))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, encoding="utf-8", timeout=60)
    assert (done.stdout, done.stderr) == ("7\n", "")


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Inputs for a second or so, more bytes than a pipe holds."""
    picture = tmp_path_factory.mktemp("picture") / "a.png"
    Image.effect_noise((200, 200), 50).convert("RGB").save(picture)
    items: list[dict[str, Any]] = [{"text": f"{number} " + "stone " * 40} for number in range(300)]
    items.append({"image": str(picture)})
    text = "".join(json.dumps(item) + "\n" for item in items).encode()
    return text + b"\n" * PIPE_BYTES  # empty lines are skipped


@pytest.mark.parametrize("name", ["rows.npy", "rows.jsonl"])
def test_a_command_leaves_no_half_file(package: Callable[..., Path], tmp_path: Path, lines: bytes, name: str) -> None:
    output = tmp_path / "out" / name
    output.parent.mkdir()
    command = [sys.executable, "-m", "runtime", "embed", package(TINY_2B, "embedding"), "--input", "-"]

    def started() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*command, "--output", output], env=ENVIRONMENT, stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdin
        process.stdin.write(lines)  # returns when the command reads: Python itself has started by then
        process.stdin.flush()
        return process

    process = started()
    start = time.monotonic()
    assert process.communicate() == (None, b"") and process.returncode == 0
    duration, whole = time.monotonic() - start, output.read_bytes()
    moments, codes = random.Random(name), []
    for _ in range(MOMENTS):
        output.write_bytes(b"old")
        process = started()
        time.sleep(moments.uniform(0, 0.9 * duration))
        process.send_signal(signal.SIGINT)
        _, words = process.communicate()
        codes.append(process.returncode)
        assert [path.name for path in output.parent.iterdir()] == [name]
        if process.returncode == 0:  # it was faster than the first one
            assert output.read_bytes() == whole
        else:
            assert (process.returncode, words) == (130, b"error: interrupted.\n")
            assert output.read_bytes() == b"old"
    assert 130 in codes
