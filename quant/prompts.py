"""What packages are compared on, as prompts: JSON lines as `python -m runtime` takes them, or the built-in samples."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from quant.samples import QUERY, builtin_items
from runtime.errors import InputError
from runtime.json_lines import read_json_lines
from runtime.manifest import Task
from runtime.media.image import Visual
from runtime.prompts.encode import Encoder, TokenSequence, located
from runtime.prompts.inputs import Content, RerankRequest, parse_content, parse_item, parse_request


@dataclass(frozen=True, eq=False)
class Prompt:
    """One input as the graphs take it: its tokens, and the patches of its pictures and videos in their order."""

    sequence: TokenSequence
    visuals: tuple[Visual, ...]


# Pictures are loaded when a prompt is made, so only those of one prompt are in memory.
MakePrompt = Callable[[], Prompt]


def prompts(encoder: Encoder, task: Task, file: Path | None) -> list[MakePrompt]:
    """One maker a line of `file` (one a document where `task` is reranker), or one a built-in sample.

    Raises InputError for a file that cannot be read or holds nothing, naming the line; makers raise it for an input.
    """
    if file is None:
        items = enumerate(builtin_items())
        return [partial(sample_prompt, encoder, task, item, f"sample {number}") for number, item in items]
    lines = list(read_json_lines(str(file), "--inputs "))
    found: list[MakePrompt]
    if task == "embedding":
        found = [partial(sample_prompt, encoder, task, line, f"inputs[{number}]") for number, line in enumerate(lines)]
    else:
        found = [make for number, line in enumerate(lines) for make in _pairs(encoder, line, f"requests[{number}]")]
    if not found:
        raise InputError(f"--inputs {file} holds nothing to compare on; write one input a line.")
    return found


def sample_prompt(encoder: Encoder, task: Task, item: object, where: str) -> Prompt:
    """An item as the embedder sees it, or as a document for a fixed query as the reranker does. Raises InputError."""
    parsed = parse_item(item, where)
    loaded = encoder.load(parsed.content, parsed.fps, parsed.max_frames, where)
    if task == "embedding":
        return Prompt(encoder.embedding_sequence(loaded, parsed.instruction, where), loaded.visuals)
    query = encoder.load(Content((QUERY,)), None, None, where)
    return Prompt(encoder.rerank_sequence(query, loaded, parsed.instruction, where), loaded.visuals)


def _pairs(encoder: Encoder, line: object, where: str) -> list[MakePrompt]:
    with located(where):
        request = parse_request(line)
    return [partial(_pair, encoder, request, index, where) for index in range(len(request.documents))]


def _pair(encoder: Encoder, request: RerankRequest, index: int, where: str) -> Prompt:
    name = f"{where}: documents[{index}]"
    content = parse_content(request.documents[index], name)
    query = encoder.load(request.query, request.fps, request.max_frames, f"{where}: query")
    document = encoder.load(content, request.fps, request.max_frames, name)
    sequence = encoder.rerank_sequence(query, document, request.instruction, name)
    return Prompt(sequence, query.visuals + document.visuals)
