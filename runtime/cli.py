"""The command line of the runtime: results on stdout, words and progress on stderr, the exit code tells the truth."""

import argparse
import json
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import numpy as np

from runtime.embedder import Qwen3VLEmbedder
from runtime.encode import located
from runtime.errors import InputError, Qwen3VLError
from runtime.manifest import Manifest
from runtime.memory import MemoryMode
from runtime.package import Skipped
from runtime.reranker import Qwen3VLReranker
from runtime.target import TARGETS
from runtime.version import VERSION

EXAMPLES = """examples:
  python -m runtime embed PACKAGE --text "a red car" --image car.jpg
  python -m runtime embed PACKAGE --input items.jsonl --output vectors.npy --dimensions 512
  python -m runtime rerank PACKAGE --query "a red car" --image car.jpg --text "a blue bicycle"
  python -m runtime rerank PACKAGE --input requests.jsonl
  python -m runtime check PACKAGE
"""
INPUT_HELP = """JSON lines, - for standard input; each line one dict as `process` takes it:
  embed:  {"text": ..., "image": ..., "video": ..., "instruction": ...}
  rerank: {"query": {...}, "documents": [{...}, ...], "instruction": ...}"""


def parser() -> argparse.ArgumentParser:
    """The commands of `python -m runtime`."""
    parser = argparse.ArgumentParser(
        "python -m runtime",
        description="Embed and rerank text, pictures and video with a package made by `python -m export`.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"qwen3vl-edge {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    embed = commands.add_parser(
        "embed", help="vectors of texts, pictures, videos", formatter_class=argparse.RawTextHelpFormatter
    )
    _add_shared(embed, "embed this text (may be repeated)", "embed this picture", "embed this video")
    embed.add_argument(
        "--output", type=Path, help="a .npy file [N, D], or a .jsonl file (default: JSON lines on stdout)"
    )
    embed.add_argument("--dimensions", type=int, help="cut every vector to this many numbers (Matryoshka)")
    embed.add_argument("--no-normalize", action="store_true", help="leave the vectors' length as it is")
    rerank = commands.add_parser(
        "rerank", help="scores of documents for a query", formatter_class=argparse.RawTextHelpFormatter
    )
    _add_shared(rerank, "a document that is this text (may be repeated)", "a document that is this picture", "a video")
    rerank.add_argument("--query", help="the query's text")
    rerank.add_argument("--query-image", help="the query's picture")
    check = commands.add_parser("check", help="compare every file of a package with its SHA-256")
    check.add_argument("package", type=Path)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 1 if an input was skipped, 2 for an error."""
    options = parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return int({"embed": _embed, "rerank": _rerank, "check": _check}[options.command](options))
    except Qwen3VLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader went away, as `head` does
        sys.stderr.close()
        return 141
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return 130


def _add_shared(command: argparse.ArgumentParser, text: str, image: str, video: str) -> None:
    command.add_argument("package", type=Path, help="the folder that `python -m export` wrote")
    command.add_argument("--input", metavar="FILE", help=INPUT_HELP)
    command.add_argument("--text", action="append", default=[], help=text)
    command.add_argument("--image", action="append", default=[], metavar="PATH_OR_URL", help=image)
    command.add_argument("--video", action="append", default=[], metavar="PATH_OR_URL", help=video)
    command.add_argument("--instruction", help="what the vectors or scores are for; replaces the package's default")
    command.add_argument("--max-pixels", type=int, help="most pixels of a picture (1,024 make one token)")
    command.add_argument("--fps", type=float, help="frames looked at for each second of video")
    command.add_argument("--max-frames", type=int, help="most frames of a video")
    defaults = ", ".join(f"{target.batch_tokens:,} on {name}" for name, target in TARGETS.items())
    command.add_argument(
        "--batch-tokens",
        type=int,
        help=f"tokens in a decoder call, longer inputs go in pieces (default {defaults}, in low memory half)",
    )
    command.add_argument("--threads", type=int, help="default: the CPUs this process may use")
    command.add_argument(
        "--memory",
        choices=get_args(MemoryMode),
        default="normal",
        help="low: weights stay in the mapped files, buffers and vision encoder are given back after use; slower",
    )
    command.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="skip: go on without an input that cannot be used (null in the output, exit code 1)",
    )


def _embed(options: argparse.Namespace) -> int:
    output: Path | None = options.output
    if output and output.suffix not in (".npy", ".jsonl"):
        raise InputError(f"--output {output} ends in neither .npy nor .jsonl; choose one of them.")
    if output and not output.parent.is_dir():  # found now rather than after hours of work
        raise InputError(f"--output {output}: there is no folder {output.parent}; create it or choose another.")
    items = list(_json_lines(options.input)) if options.input else []
    items += [{key: value} for key in ("text", "image", "video") for value in getattr(options, key)]
    if not items and not options.input:
        raise InputError("nothing to embed; give --text, --image, --video or --input.")
    embedder = Qwen3VLEmbedder(options.package, **_shared_options(options), dimensions=options.dimensions)
    skipped: list[Skipped] = []
    rows = embedder.process(
        [_with_instruction(item, options.instruction) for item in items],
        not options.no_normalize,
        on_error=options.on_error,
        skipped=skipped,
    )
    errors = {each.index: str(each.error) for each in skipped}
    if output:
        _write(output, rows, errors)
    else:
        for line in _vector_lines(rows, errors):
            print(line)
    return _report(list(errors.values()))


def _rerank(options: argparse.Namespace) -> int:
    requests = list(_json_lines(options.input)) if options.input else []
    from_file = len(requests)
    query = {"text": options.query, "image": options.query_image}
    query = {key: value for key, value in query.items() if value is not None}
    documents = [{key: value} for key in ("text", "image", "video") for value in getattr(options, key)]
    if query and documents:
        requests.append({"query": query, "documents": documents})
    elif query or documents or not options.input:
        raise InputError(
            "nothing to rerank; give --query or --query-image, and documents by --text, --image or --video, or --input."
        )
    reranker = Qwen3VLReranker(options.package, **_shared_options(options))
    lost: list[str] = []
    for index, request in enumerate(requests):
        place = f"requests[{index}]: " if from_file else ""
        skipped: list[Skipped] = []
        try:
            with located(f"requests[{index}]") if from_file else nullcontext():
                scores = reranker.process(
                    _with_instruction(request, options.instruction), on_error=options.on_error, skipped=skipped
                )
        except InputError as error:
            if options.on_error == "raise":
                raise
            print(json.dumps({"scores": None, "error": str(error)}), flush=True)
            lost.append(str(error))
            continue
        errors = {str(each.index): str(each.error) for each in skipped}
        line: dict[str, Any] = {"scores": [None if math.isnan(score) else score for score in scores]}
        print(json.dumps({**line, "errors": errors} if errors else line), flush=True)
        lost += [f"{place}{each.error}" for each in skipped]
    return _report(lost)


def _check(options: argparse.Namespace) -> int:
    manifest = Manifest.read(options.package)
    manifest.check(options.package)
    size = sum(file.size for file in manifest.files)
    print(
        f"{options.package} is whole: {manifest.name}, {manifest.task}, {manifest.precision} for {manifest.target}, "
        f"{len(manifest.files)} files, {size / 1e6:,.1f} MB, fingerprint {manifest.fingerprint[:16]}"
    )
    return 0


def _shared_options(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "max_pixels": options.max_pixels,
        "fps": options.fps,
        "max_frames": options.max_frames,
        "batch_tokens": options.batch_tokens,
        "threads": options.threads,
        "memory": options.memory,
        "show_progress": sys.stderr.isatty(),
    }


def _with_instruction(item: Any, instruction: str | None) -> Any:
    """The item with --instruction where it has none of its own; what is no dict is refused later, by its place."""
    return {"instruction": instruction, **item} if instruction is not None and isinstance(item, dict) else item


def _json_lines(name: str) -> Iterator[Any]:
    """The values of a JSON lines file, - for standard input. Raises InputError naming file and line."""
    try:
        # -sig: Windows' tools put a byte order mark before UTF-8.
        with open(0 if name == "-" else name, encoding="utf-8-sig", closefd=name != "-") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise InputError(f"{name}, line {number}: not JSON ({error}); write one object a line.") from None
    except OSError as error:
        raise InputError(f"--input {name} cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--input {name} is not UTF-8 ({error.reason}); convert it.") from error


def _vector_lines(rows: np.ndarray, errors: Mapping[int, str]) -> Iterator[str]:
    """One JSON line a row; float32's shortest decimal form, so that reading it back gives the same number."""
    for index, row in enumerate(rows):
        if index in errors:
            yield json.dumps({"index": index, "embedding": None, "error": errors[index]})
        else:
            numbers = ", ".join(str(number) for number in row)
            yield f'{{"index": {index}, "embedding": [{numbers}]}}'


def _write(output: Path, rows: np.ndarray, errors: Mapping[int, str]) -> None:
    try:
        if output.suffix == ".npy":
            np.save(output, rows)
            return
        with output.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(line + "\n" for line in _vector_lines(rows, errors))
    except OSError as error:
        raise InputError(f"--output {output} cannot be written ({error.strerror}); choose another place.") from error


def _show_warning(message: Warning | str, *place: object, **more: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _report(lost: Sequence[str]) -> int:
    for sentence in lost:
        print(f"skipped: {sentence}", file=sys.stderr)
    return 1 if lost else 0
