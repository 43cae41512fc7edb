"""`python -m runtime embed`: vectors of texts, pictures and videos as JSON lines or a .npy file."""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtime.cli_options import (
    Lines,
    add_budgets,
    add_command,
    add_inputs,
    add_resources,
    constructor_options,
    with_instruction,
)
from runtime.embedder import Qwen3VLEmbedder
from runtime.errors import InputError
from runtime.json_lines import read_json_lines
from runtime.package import Skipped


def add_embed(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    command = add_command(commands, "embed", embed, "vectors of texts, pictures, videos")
    add_inputs(command, "embed this text (may be repeated)", "embed this picture", "embed this video")
    command.add_argument(
        "--output", type=Path, help="a .npy file [N, D], or a .jsonl file (default: JSON lines on stdout)"
    )
    command.add_argument("--dimensions", type=int, help="cut every vector to this many numbers (Matryoshka)")
    command.add_argument("--no-normalize", action="store_true", help="leave the vectors' length as it is")
    add_budgets(command)
    add_resources(command)


def embed(options: argparse.Namespace) -> Lines:
    """A JSON line a vector, or none where they go into a file. Raises InputError, PackageError."""
    output: Path | None = options.output
    if output and output.suffix not in (".npy", ".jsonl"):
        raise InputError(f"--output {output} ends in neither .npy nor .jsonl; choose one of them.")
    if output and not output.parent.is_dir():  # found now rather than after hours of work
        raise InputError(f"--output {output}: there is no folder {output.parent}; create it or choose another.")
    items = list(read_json_lines(options.input)) if options.input else []
    items += [{key: value} for key in ("text", "image", "video") for value in getattr(options, key)]
    if not items and not options.input:
        raise InputError("nothing to embed; give --text, --image, --video or --input.")
    embedder = Qwen3VLEmbedder(options.package, **constructor_options(options), dimensions=options.dimensions)
    skipped: list[Skipped] = []
    rows = embedder.process(
        [with_instruction(item, options.instruction) for item in items],
        not options.no_normalize,
        on_error=options.on_error,
        skipped=skipped,
    )
    errors = {each.index: str(each.error) for each in skipped}
    if output:
        _write(output, rows, errors)
    else:
        yield from _vector_lines(rows, errors)
    return [f"skipped: {error}" for error in errors.values()]


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
