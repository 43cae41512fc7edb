"""A checkpoint folder's settings in the spelling of transformers 4.57, which the reference runs on.

transformers 5 writes `rope_parameters`, one file for the whole processor, and special tokens as a list.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from runtime.errors import CheckpointError

CONFIG, PROCESSOR, TOKENIZER_CONFIG = "config.json", "processor_config.json", "tokenizer_config.json"
# The sections of PROCESSOR that have a file of their own in 4.57.
SECTIONS = {"image_processor": "preprocessor_config.json", "video_processor": "video_preprocessor_config.json"}


def reference_config(folder: Path) -> dict[str, Any]:
    """The content of `config.json`. Raises CheckpointError where it is missing."""
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no config.json; give the folder of a Qwen3-VL checkpoint.")
    content = _read(folder / CONFIG)
    text = content["text_config"]
    if text.get("rope_scaling") is None and text.get("rope_parameters") is not None:
        rotary = dict(text["rope_parameters"])
        text["rope_theta"] = rotary.pop("rope_theta")
        text["rope_scaling"] = rotary
    return content


def copy_processor(folder: Path, target: Path) -> None:
    """Copy what the processor and its tokenizer read into the empty folder `target`."""
    for path in folder.iterdir():
        if path.suffix in (".json", ".jinja", ".txt") and path.name != PROCESSOR and path.is_file():
            shutil.copyfile(path, target / path.name)
    settings = _read(folder / PROCESSOR)
    for section, name in SECTIONS.items():
        if section in settings and not (target / name).exists():
            _write(target / name, settings[section])
    tokenizer = _read(folder / TOKENIZER_CONFIG)
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
        _write(target / TOKENIZER_CONFIG, tokenizer)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8", newline="\n")
