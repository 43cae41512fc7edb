"""What scripts/demo runs: tiny random checkpoints are exported, then embed and rerank drawn pictures, a clip and texts.

Everything it writes lies in demo/; nothing is fetched.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw

from runtime import Qwen3VLEmbedder, Qwen3VLReranker

ROOT = Path(__file__).parents[1]
DEMO = Path("demo")
MEDIA = DEMO / "media"
TASKS = ("embedding", "reranker")
NOTICE = """
THE WEIGHTS ARE RANDOM: shapes, files and commands are those of real use, the similarities and scores mean nothing."""


def main() -> None:
    """Run the demo; every command's own output goes through."""
    os.chdir(ROOT)
    print(NOTICE)
    title("1. Two tiny random checkpoints, with the published tensor names and tokenizers")
    for task in TASKS:
        shutil.rmtree(checkpoint_folder(task), ignore_errors=True)
        command("tests/random_checkpoint.py", str(checkpoint_folder(task)), "--shape", "tiny-2b", "--task", task)
    title("2. Export: checkpoint to ONNX package, without torch")
    for task in TASKS:
        folders = ("--model", str(checkpoint_folder(task)), "--output", str(package_folder(task)))
        command("-m", "export", *folders, "--force")
        command("-m", "runtime", "check", str(package_folder(task)))
    title("3. Inputs")
    inputs = draw_inputs()
    for label, item in inputs.items():
        print(f"  {label:14} {item}")
    title("4. Embedding")
    embed(inputs)
    title("5. Reranking")
    rerank(inputs)
    print(NOTICE)


def title(text: str) -> None:
    """A heading."""
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def checkpoint_folder(task: str) -> Path:
    """Where the demo's checkpoint of a task lies."""
    return DEMO / "checkpoints" / f"random-{task}"


def package_folder(task: str) -> Path:
    """Where the demo's package of a task lies."""
    return DEMO / "packages" / f"random-{task}"


def command(*arguments: str) -> None:
    """Show a command as a user would type it, run it with this Python, say how long it took."""
    print(f"$ {shlex.join(['python', *arguments])}", flush=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True)
    print(f"  {time.perf_counter() - start:.1f} s\n", flush=True)


def draw_inputs() -> dict[str, dict[str, Any]]:
    """Draw the pictures and the clip; every input by a short name."""
    MEDIA.mkdir(parents=True, exist_ok=True)
    draw_disc(320, 240, 0.5).save(MEDIA / "disc.png")
    draw_squares(256, 256).save(MEDIA / "squares.png")
    draw_sunset(480, 270).save(MEDIA / "sunset.jpg")
    write_clip(MEDIA / "clip.mp4", [draw_disc(160, 128, step / 23) for step in range(24)])
    disc, squares, sunset, clip = (str(MEDIA / name) for name in ("disc.png", "squares.png", "sunset.jpg", "clip.mp4"))
    return {
        "text: disc": {"text": "A red disc on a white ground."},
        "text: sunset": {"text": "The sun goes down over the sea."},
        "text: French": {"text": "Le soleil se couche sur la mer."},
        "disc": {"image": disc},
        "squares": {"image": squares},
        "sunset": {"image": sunset},
        "clip": {"video": clip},
        "text + picture": {"text": "What colour is the sea?", "image": sunset},
    }


def draw_disc(width: int, height: int, position: float) -> Image.Image:
    """A red disc on white, `position` of the way from left to right."""
    picture = Image.new("RGB", (width, height), "white")
    radius = height / 4
    x = radius + position * (width - 2 * radius)
    ImageDraw.Draw(picture).circle((x, height / 2), radius, "crimson")
    return picture


def draw_squares(width: int, height: int) -> Image.Image:
    """A blue and yellow chessboard."""
    rows, columns = np.indices((height, width)) // 32
    colours = np.array([(20, 60, 200), (250, 210, 40)], np.uint8)
    return Image.fromarray(colours[(rows + columns) % 2])


def draw_sunset(width: int, height: int) -> Image.Image:
    """A sky from violet to orange, a low sun, a dark sea."""
    share = np.linspace(0, 1, height)[:, None, None]
    sky = (1 - share) * np.array([70, 40, 120]) + share * np.array([255, 150, 60])
    picture = Image.fromarray(np.broadcast_to(sky, (height, width, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    draw.circle((width * 0.6, height * 0.62), height * 0.12, "gold")
    draw.rectangle((0, height * 0.68, width, height), "midnightblue")
    return picture


def write_clip(path: Path, frames: Sequence[Image.Image]) -> None:
    """An MP4 of the frames, eight a second."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        container.mux(stream.encode())


def embed(inputs: dict[str, dict[str, Any]]) -> None:
    """Print the vectors' shape, the times and the similarity of every pair of inputs."""
    start = time.perf_counter()
    embedder = Qwen3VLEmbedder(package_folder("embedding"))
    opened = time.perf_counter()
    vectors = embedder.process(list(inputs.values()))
    done = time.perf_counter()
    print(f"  opened in {opened - start:.2f} s; {len(inputs)} inputs in {done - opened:.2f} s")
    print(
        f"  vectors: {vectors.dtype} {list(vectors.shape)}, each of length {np.linalg.norm(vectors, axis=1).mean():.6f}"
    )
    print("\n  cosine similarity (random weights)")
    print(" " * 18 + "".join(f"{number:>7}" for number in range(1, len(inputs) + 1)))
    for number, (label, row) in enumerate(zip(inputs, vectors @ vectors.T, strict=True), 1):
        print(f"  {number} {label:14}" + "".join(f"{value:7.3f}" for value in row))


def rerank(inputs: dict[str, dict[str, Any]]) -> None:
    """Print the score of every picture and the clip for a text, the best first."""
    query = inputs["text: sunset"]
    documents = {label: item for label, item in inputs.items() if not label.startswith("text:")}
    start = time.perf_counter()
    reranker = Qwen3VLReranker(package_folder("reranker"))
    opened = time.perf_counter()
    scores = reranker.process({"query": query, "documents": list(documents.values())})
    done = time.perf_counter()
    print(f"  opened in {opened - start:.2f} s; {len(scores)} documents in {done - opened:.2f} s")
    print(f"  query: {query['text']}\n\n  score (random weights)")
    for label, score in sorted(zip(documents, scores, strict=True), key=lambda pair: -pair[1]):
        print(f"  {score:.4f}  {label}")


if __name__ == "__main__":
    main()
