"""`python -m runtime embed`: vectors of texts, pictures and videos as JSON lines or a .npy file."""

import argparse
from pathlib import Path
from typing import Any

from runtime.commands.options import (
    Lines,
    add_budgets,
    add_command,
    add_inputs,
    add_resources,
    constructor_options,
    with_instruction,
)
from runtime.commands.results import require_writable, vector_lines, write_vectors
from runtime.embedder import Qwen3VLEmbedder
from runtime.errors import InputError
from runtime.graphs.package import Skipped
from runtime.json_lines import read_json_lines


def add_embed(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    command = add_command(commands, "embed", embed, "vectors of texts, pictures, videos")
    add_inputs(
        command,
        "embed this text (all three may be repeated; vectors come in their order)",
        "embed this picture",
        "embed this video",
    )
    command.add_argument(
        "--output", type=Path, help="a .npy file [N, D], or a .jsonl file (default: JSON lines on stdout)"
    )
    command.add_argument("--dimensions", type=int, help="cut every vector to this many numbers (Matryoshka)")
    command.add_argument("--no-normalize", action="store_true", help="leave the vectors' length as it is")
    add_budgets(command)
    add_resources(command)


def embed(options: argparse.Namespace, complaints: list[str]) -> Lines:
    """A JSON line a vector, or none where they go into a file. Raises InputError, PackageError."""
    output: Path | None = options.output
    if output:
        require_writable(output)
    items = list(read_json_lines(options.input)) if options.input else []
    items += options.items
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
    complaints += [f"skipped: {error}" for error in errors.values()]
    if output:
        write_vectors(output, rows, errors)
    else:
        yield from vector_lines(rows, errors)
