"""The reference's prompts as plain strings; mirrors format_model_input / format_mm_instruction and the chat template.

For every message list the two reference classes can build, the template reduces to one system and one user turn.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.prompts.inputs import Content

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
EMPTY = "NULL"
RERANK_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)


@dataclass(frozen=True)
class VisualTokens:
    """How many pads a visual takes: one run for a picture, one after each timestamp (seconds) for a video."""

    count: int
    timestamps: tuple[float, ...] | None = None


def embedding_prompt(content: Content, instruction: str) -> str:
    """The embedder's prompt, each visual still one pad; `instruction` as from `embedding_instruction`."""
    return _turns(instruction, _parts(content))


def embedding_instruction(instruction: str | None, default: str) -> str:
    """Stripped, a full stop added unless the last character is punctuation (Unicode P*); empty → the default as is."""
    stripped = (instruction or "").strip()
    if stripped and not unicodedata.category(stripped[-1]).startswith("P"):
        stripped += "."
    return stripped or default


def rerank_prompt(query: Content, document: Content, instruction: str) -> str:
    """The reranker's prompt for one pair, each visual still one pad."""
    parts = [
        f"<Instruct>: {instruction}<Query>:",
        _parts(query),
        "\n<Document>:",
        _parts(document),
    ]
    return _turns(RERANK_SYSTEM, "".join(parts))


def expand_visuals(prompt: str, visuals: Sequence[VisualTokens]) -> str:
    """Replace the n-th pad by the tokens of the n-th visual.

    A video's own start and end markers go: each frame pair brings a timestamp and markers of its own (4.57 behaviour).
    """
    pieces, rest = [], prompt
    for visual in visuals:
        marker = IMAGE if visual.timestamps is None else VIDEO
        before, found, rest = rest.partition(marker)
        if not found:
            raise AssertionError(f"no {marker} left for a visual")
        pieces += [before, _expanded(visual)]
    return "".join([*pieces, rest])


def _expanded(visual: VisualTokens) -> str:
    if visual.timestamps is None:
        return f"<|vision_start|>{IMAGE_PAD * visual.count}<|vision_end|>"
    run = f"<|vision_start|>{VIDEO_PAD * visual.count}<|vision_end|>"
    return "".join(f"<{seconds:.1f} seconds>{run}" for seconds in visual.timestamps)


def _turns(system: str, user: str) -> str:
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def _parts(content: Content) -> str:
    """Videos, then pictures, then texts, whatever order they were given in; nothing at all is the text NULL."""
    if content.is_empty:
        return EMPTY
    return VIDEO * len(content.videos) + IMAGE * len(content.images) + "".join(content.texts)
