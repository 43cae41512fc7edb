"""The published Qwen3-VL tokenizers, rebuilt byte for byte from the rank table in PyPI's `dashscope`.

In: resources/qwen.tiktoken of the installed wheel; no hub. Out: the tokenizer files of a checkpoint folder.
"""

import base64
import hashlib
import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

Task = Literal["embedding", "reranker"]

SHA256: dict[str, str] = {
    "embedding": "def76fb086971c7867b829c23a26261e38d9d74e02139253b38aeb9df8b4b50a",  # 11,423,705 bytes
    "reranker": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",  # 11,422,654 bytes
}
FIRST_ADDED_ID = 151643
_SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
)
# Matched whole in a text, but not special: the reranker's truncation may drop them.
_ORDINARY = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> "
    "<|file_sep|> <tool_response> </tool_response> <think> </think>"
)
SPECIAL_TOKENS = tuple(_SPECIAL.split())
ORDINARY_TOKENS = tuple(_ORDINARY.split())
SPLIT_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
# Equal in effect to both published templates for a system turn followed by a user turn, each a list of parts.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- for part in message.content -%}
        {%- if part.type == 'text' -%}
            {{- part.text -}}
        {%- else -%}
            {{- '<|vision_start|><|' + part.type + '_pad|><|vision_end|>' -}}
        {%- endif -%}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def write_tokenizer(folder: Path, task: Task, *, cache: Path | None = None) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja of `task` into `folder`.

    The built tokenizer.json is kept in `cache`; by default in this user's folder of the temporary one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(_cached_tokenizer_json(task, cache or _user_cache()))
    config = json.dumps(tokenizer_config(), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8", newline="\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8", newline="\n")


def build_tokenizer_json(task: Task) -> bytes:
    """The published tokenizer.json of `task`; ValueError if the rank table at hand does not give it."""
    ranks = _read_ranks()
    text = {token: "".join(_BYTE_TEXT[byte] for byte in token) for token in ranks}
    merges = [[text[part] for part in _merged_pair(token, ranks)] for token in ranks if len(token) > 1]
    document = tokenizer_document(
        {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text[token]: rank for token, rank in ranks.items()},
            "merges": merges,
        },
        task,
    )
    built = json.dumps(document, indent=2, ensure_ascii=False).encode()
    if (found := hashlib.sha256(built).hexdigest()) != SHA256[task]:
        raise ValueError(f"the built {task} tokenizer.json has SHA-256 {found}, expected {SHA256[task]}.")
    return built


def tokenizer_document(model: dict[str, Any], task: Task, first_added_id: int = FIRST_ADDED_ID) -> dict[str, Any]:
    """A tokenizer.json as both published ones are, around any byte-level BPE `model`."""
    split = {"type": "Split", "pattern": {"Regex": SPLIT_REGEX}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(first_added_id),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]},
        "post_processor": _endoftext_last(first_added_id) if task == "embedding" else BYTE_LEVEL,
        "decoder": BYTE_LEVEL,
        "model": model,
    }


def _cached_tokenizer_json(task: Task, cache: Path) -> bytes:
    path = cache / f"{task}-tokenizer.json"
    if path.is_file():
        cached = path.read_bytes()
        if hashlib.sha256(cached).hexdigest() == SHA256[task]:
            return cached
    built = build_tokenizer_json(task)
    cache.mkdir(parents=True, exist_ok=True)
    # Renamed into place: test processes running side by side never read half a file.
    with tempfile.NamedTemporaryFile(dir=cache, delete=False) as file:
        file.write(built)
    os.replace(file.name, path)
    return built


def _user_cache() -> Path:
    # Windows has one temporary folder per user already and no getuid.
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"qwen3vl-edge-{user}"


def _read_ranks() -> dict[bytes, int]:
    # find_spec, not import: dashscope's import pulls in an HTTP client that is not wanted here.
    spec = importlib.util.find_spec("dashscope")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the tests' tokenizer needs dashscope; run `pip install dashscope==1.24.6`.")
    table = (Path(spec.origin).parent / "resources" / "qwen.tiktoken").read_bytes()
    pairs = (line.split() for line in table.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _merged_pair(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two parts that BPE restricted to lower ranks leaves of `token`: the merge that made it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        first = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts


def _byte_text() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte: itself if printable, else the next code point from 256."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return {byte: chr(byte if byte in printable else next(stand_ins)) for byte in range(256)}


_BYTE_TEXT = _byte_text()


def _added_tokens(first_id: int) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": first_id + i, "content": token, **flags, "special": token in SPECIAL_TOKENS}
        for i, token in enumerate((*SPECIAL_TOKENS, *ORDINARY_TOKENS))
    ]


def _endoftext_last(end_id: int) -> dict[str, Any]:
    """The embedding model's post-processor: <|endoftext|> after everything, the token that is pooled."""
    end = "<|endoftext|>"
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    last = {"SpecialToken": {"id": end, "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [first, last],
        "pair": [first, second, last],
        "special_tokens": {end: {"id": end, "ids": [end_id], "tokens": [end]}},
    }
    return {"type": "Sequence", "processors": [BYTE_LEVEL, template]}


def tokenizer_config(first_added_id: int = FIRST_ADDED_ID) -> dict[str, Any]:
    """The tokenizer_config.json beside such a document."""
    added = {str(token.pop("id")): token for token in _added_tokens(first_added_id)}
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "processor_class": "Qwen3VLProcessor",
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": 262144,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_prefix_space": False,
        "split_special_tokens": False,
    }
