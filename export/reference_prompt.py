"""What the reference's two classes say to the model: items in, chat messages for its processor out.

Mirrors format_model_input, format_mm_instruction and truncate_tokens_optimized; no torch here.
"""

import os
import unicodedata
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

import numpy as np
from PIL import Image

from runtime.errors import InputError

Item = dict[str, Any]

EMBEDDER_INSTRUCTION = "Represent the user's input."
RERANKER_INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."
RERANKER_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
RERANKER_TAIL = 5  # tokens of "<|im_end|>\n<|im_start|>assistant\n", which truncation sets apart
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tiff", ".svg")
URL_SCHEMES = ("http://", "https://")
TOKEN_PIXELS = 32 * 32


@dataclass(frozen=True)
class ReferenceOptions:
    """The reference classes' arguments; None is the class's own default.

    `file_total_pixels` departs from the reference: it gives video files the budget that frame lists have.
    """

    max_length: int | None = None  # tokens: 8192 for the embedder, 10240 for the reranker
    min_pixels: int = 4 * TOKEN_PIXELS
    max_pixels: int = 1800 * TOKEN_PIXELS
    total_pixels: int = 10 * 768 * TOKEN_PIXELS
    fps: float = 1
    max_frames: int = 64
    default_instruction: str | None = None
    file_total_pixels: bool = False


def embedder_messages(item: Item, options: ReferenceOptions) -> list[Item]:
    """The messages of one item: text, image, video, instruction, fps, max_frames, all optional."""
    instruction = (item.get("instruction") or "").strip()
    if instruction and not unicodedata.category(instruction[-1]).startswith("P"):
        instruction += "."
    default = EMBEDDER_INSTRUCTION if options.default_instruction is None else options.default_instruction
    return _messages(instruction or default, _content(item, item, options))


def reranker_messages(inputs: Item, document: Item, options: ReferenceOptions) -> list[Item]:
    """The messages of one pair; `inputs` holds the query, and may hold instruction, fps and max_frames."""
    query, instruction = inputs["query"], inputs.get("instruction")
    if isinstance(query.get("text"), tuple):
        instruction, text = query["text"]
        query = {**query, "text": text}
    default = RERANKER_INSTRUCTION if options.default_instruction is None else options.default_instruction
    parts = [_text(f"<Instruct>: {instruction or default}")]
    parts += [_text("<Query>:"), *_content(query, inputs, options)]
    parts += [_text("\n<Document>:"), *_content(document, inputs, options)]
    return _messages(RERANKER_SYSTEM, parts)


def truncate(ids: list[int], limit: int, special: set[int]) -> list[int]:
    """All special tokens and the first ordinary ones, `limit` of both, then the untouched tail."""
    body, tail = ids[:-RERANKER_TAIL], ids[-RERANKER_TAIL:]
    if len(body) > limit:
        ordinary = [position for position, token in enumerate(body) if token not in special]
        dropped = set(ordinary[max(0, limit - (len(body) - len(ordinary))) :])
        body = [token for position, token in enumerate(body) if position not in dropped]
    return body + tail


def _messages(system: str, parts: list[Item]) -> list[Item]:
    return [{"role": "system", "content": [_text(system)]}, {"role": "user", "content": parts}]


def _text(text: str) -> Item:
    return {"type": "text", "text": text}


def _content(item: Item, sampling: Item, options: ReferenceOptions) -> list[Item]:
    """The parts of format_model_input and format_mm_content; `sampling` may hold fps and max_frames."""
    text, image, video = item.get("text"), item.get("image"), item.get("video")
    texts = [] if text is None else [text] if isinstance(text, str) else list(text)
    images = [] if image is None else image if isinstance(image, list) else [image]
    videos = [] if video is None else [video] if _is_one_video(video) else video
    if not texts and not images and not videos:
        return [_text("NULL")]
    parts = [_video(one, sampling, options) for one in videos if one != []]
    for one in images:
        bounds = {"min_pixels": options.min_pixels, "max_pixels": options.max_pixels}
        parts.append({"type": "image", "image": _located(one), **bounds})
    return parts + [_text(one) for one in texts]


def _video(video: Any, sampling: Item, options: ReferenceOptions) -> Item:
    budget: Item = {"total_pixels": options.total_pixels}
    if isinstance(video, str):
        fps, max_frames = sampling.get("fps") or options.fps, sampling.get("max_frames") or options.max_frames
        part = {"type": "video", "video": _located(video), "fps": fps, "max_frames": max_frames}
        return part | budget if options.file_total_pixels else part
    if not isinstance(video, list):
        raise InputError(f"a video is a {type(video).__name__}; give a path, a URL or a list of frames.")
    if len(video) > options.max_frames:
        video = [video[i] for i in np.linspace(0, len(video) - 1, options.max_frames, dtype=int)]
    frames = ["file://" + frame if isinstance(frame, str) else frame for frame in video]
    return {"type": "video", "video": frames, **budget}


def _is_one_video(video: Any) -> bool:
    """A list is one video if it starts with a picture or a picture's path, else a list of videos."""
    if not isinstance(video, list) or not video:
        return isinstance(video, str)
    if not isinstance(video[0], str):
        return isinstance(video[0], Image.Image)
    path = urlparse(video[0]).path if video[0].startswith(URL_SCHEMES) else video[0]
    return os.path.splitext(path.lower())[1] in IMAGE_SUFFIXES


def _located(source: Any) -> Any:
    if isinstance(source, str):
        return source if source.startswith(URL_SCHEMES) else "file://" + source
    if isinstance(source, Image.Image):
        return source
    raise InputError(f"a picture is a {type(source).__name__}; give a path, a URL or a PIL image.")
