"""What scripts/demo runs: the small trained pair is exported to int8, verified, and searches pictures it never saw.

Everything it writes lies in demo/. The pictures come from PyPI (bench/openmoji.py), nothing else is fetched.
"""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEMO = Path("demo")
PACKAGE, RERANKER = str(DEMO / "tiny-int8"), str(DEMO / "tiny-reranker-int8")
PICTURES, INDEX, SHEET = str(DEMO / "pictures"), str(DEMO / "index"), str(DEMO / "sheet.png")
# Text queries in three languages, each for a picture that is there, then one of another drawing style than these.
QUERIES = (("--text", "bicycle"), ("--text", "Kirschen"), ("--text", "圣诞树"))
NOTICE = """
The models are small (3.9 and 3.8 million numbers) and know emoji: of all English names every fourth or so finds its own
picture first among 1,652, of others fewer. What it shows is the whole way; the published models, 2B and 8B, go the same
way: python -m export --model Qwen3-VL-Embedding-2B --int8"""


def main() -> None:
    """Run the demo; every command's own output goes through."""
    os.chdir(ROOT)
    sys.stdout.reconfigure(errors="backslashreplace")  # Windows' code pages lack the characters of a query
    title("1. Export: a checkpoint becomes an ONNX package, without torch")
    command("-m", "export", "--model", "tiny", "--int8", "--output", PACKAGE, "--force")
    command("-m", "export", "--model", "tiny-reranker", "--int8", "--output", RERANKER, "--force")
    title("2. Verify: this machine gives what the export gave")
    command("-m", "runtime", "verify", PACKAGE)
    command("-m", "runtime", "verify", RERANKER)
    title("3. Index: pictures in a drawing style that training has not seen")
    command("-m", "bench.openmoji", PICTURES, "--count", "400")
    command("-m", "runtime", "search", PACKAGE, "--index", INDEX, "--add", PICTURES)
    title("4. Search, and put what is found in order: three languages, then a picture")
    for query in QUERIES:
        search(*query, "--top", "5")
    search("--image", draw_query(), "--top", "12", "--sheet", SHEET)
    print(f"Look at {SHEET}.\n{NOTICE}")


def title(text: str) -> None:
    """A heading."""
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def search(*options: str) -> None:
    """One search."""
    command("-m", "runtime", "search", PACKAGE, "--index", INDEX, "--reranker", RERANKER, *options)


def command(*arguments: str) -> None:
    """Show a command as a user would type it, run it with this Python, say how long it took."""
    print(f"$ {shlex.join(['python', *arguments])}", flush=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True)
    print(f"  {time.perf_counter() - start:.1f} s\n", flush=True)


def draw_query() -> str:
    """A picture of our own: a red heart."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (192, 192), "white")
    draw = ImageDraw.Draw(picture)
    for left in (28, 92):
        draw.ellipse((left, 40, left + 72, 112), fill="crimson")
    draw.polygon([(33, 92), (159, 92), (96, 168)], fill="crimson")
    path = DEMO / "query.png"
    picture.save(path)
    return str(path)


if __name__ == "__main__":
    main()
