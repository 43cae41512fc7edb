"""`python -m runtime rerank`: scores of documents for a query, a JSON line for each request."""

import argparse
import json
import math
from contextlib import nullcontext
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
from runtime.errors import InputError, NotFiniteError, OutOfMemoryError
from runtime.graphs.package import Skipped
from runtime.json_lines import read_json_lines
from runtime.prompts.encode import located
from runtime.reranker import Qwen3VLReranker


def add_rerank(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    command = add_command(commands, "rerank", rerank, "scores of documents for a query")
    text = "a document that is this text (all three may be repeated; scores come in their order)"
    add_inputs(command, text, "a document that is this picture", "a document that is this video")
    command.add_argument("--query", help="the query's text")
    command.add_argument("--query-image", help="the query's picture")
    add_budgets(command)
    add_resources(command)


def rerank(options: argparse.Namespace, complaints: list[str]) -> Lines:
    """A JSON line of scores a request. Raises InputError, PackageError."""
    requests = list(read_json_lines(options.input)) if options.input else []
    from_file = len(requests)
    query = {"text": options.query, "image": options.query_image}
    query = {key: value for key, value in query.items() if value is not None}
    if query and options.query_image is None and not options.query.strip():
        raise InputError("--query is empty; write what the documents are compared with.")
    if query and options.items:
        requests.append({"query": query, "documents": options.items})
    elif query or options.items or not options.input:
        raise InputError(
            "nothing to rerank; give --query or --query-image, and documents by --text, --image or --video, or --input."
        )
    reranker = Qwen3VLReranker(options.package, **constructor_options(options))
    for index, request in enumerate(requests):
        place = f"requests[{index}]: " if from_file else ""
        skipped: list[Skipped] = []
        try:
            with located(f"requests[{index}]") if from_file else nullcontext():
                scores = reranker.process(
                    with_instruction(request, options.instruction), on_error=options.on_error, skipped=skipped
                )
        except (InputError, OutOfMemoryError, NotFiniteError) as error:
            if options.on_error == "raise":
                raise
            yield json.dumps({"scores": None, "error": str(error)})
            complaints.append(f"skipped: {error}")
            continue
        errors = {str(each.index): str(each.error) for each in skipped}
        line: dict[str, Any] = {"scores": [None if math.isnan(score) else score for score in scores]}
        yield json.dumps({**line, "errors": errors} if errors else line)
        complaints += [f"skipped: {place}{each.error}" for each in skipped]
