"""`config.json` as the sizes the graphs are built from. What the graphs cannot express is refused here, by name."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from runtime.errors import CheckpointError
from runtime.json_text import read_json
from runtime.manifest import TextConfig, VisionConfig

MODEL_TYPE = "qwen3_vl"
# Settings that would change the computation; the value beside each is the only one the graphs implement.
FIXED_TEXT = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "sliding_window": None,
    "partial_rotary_factor": 1.0,
    "num_experts": None,
    "quantization_config": None,
}
FIXED_VISION = {"hidden_act": "gelu_pytorch_tanh"}
FIXED_ROTARY = {"rope_type": "default", "type": "default", "mrope_interleaved": True, "partial_rotary_factor": 1.0}


@dataclass(frozen=True)
class ModelConfig:
    """One checkpoint's `config.json`: sizes, tied head or not, and the ids of the visual tokens.

    `tie_word_embeddings` is true where either level says so, `text_tie_word_embeddings` where text_config does.
    """

    text: TextConfig
    vision: VisionConfig
    tie_word_embeddings: bool
    text_tie_word_embeddings: bool
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int


class Section:
    """One object of `config.json`; every lookup names the key and the file it fails in."""

    def __init__(self, content: Mapping[str, Any], where: str):
        self.content, self.where = content, where

    def section(self, key: str) -> "Section":
        """A nested object."""
        return Section(self.get(key, dict), f"{self.where}: {key}")

    def get(self, key: str, kind: type) -> Any:
        """The value of `key`, which must be there and be of `kind` (int, float, bool, list or dict)."""
        value = self.content.get(key)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            with suppress(OverflowError):
                value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            found = "is missing" if value is None else f"is {value!r}"
            raise CheckpointError(f"{self.where}: {key} {found}, expected {kind.__name__}; complete config.json.")
        return value

    def require(self, fixed: Mapping[str, object]) -> None:
        """Refuse every key of `fixed` that is present with another value."""
        for key, expected in fixed.items():
            if key in self.content and self.content[key] not in (expected, None):
                raise CheckpointError(
                    f"{self.where}: {key} is {self.content[key]!r}, only {expected!r} is supported; "
                    "this checkpoint cannot be exported."
                )


def read_config(folder: Path) -> ModelConfig:
    """Parse `config.json` of a checkpoint folder. Raises CheckpointError naming the key that is missing or refused."""
    path = folder / "config.json"
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no config.json; pass the folder of a whole checkpoint.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); download it again.") from error
    if not isinstance(content, dict) or content.get("model_type") != MODEL_TYPE:
        found = content.get("model_type") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path}: model_type is {found!r}, expected {MODEL_TYPE!r}; "
            "only Qwen3-VL-Embedding and Qwen3-VL-Reranker checkpoints can be exported."
        )
    root = Section(content, str(path))
    root.require({"quantization_config": None})
    text_section = root.section("text_config")
    config = ModelConfig(
        text=_text(text_section),
        vision=_vision(root.section("vision_config")),
        tie_word_embeddings=_tied(root) or _tied(text_section),
        text_tie_word_embeddings=_tied(text_section),
        image_token_id=root.get("image_token_id", int),
        video_token_id=root.get("video_token_id", int),
        vision_start_token_id=root.get("vision_start_token_id", int),
        vision_end_token_id=root.get("vision_end_token_id", int),
    )
    _require_consistent(config, str(path))
    return config


def _tied(section: Section) -> bool:
    """What one level states; absent it is false, as in transformers."""
    if section.content.get("tie_word_embeddings") is None:
        return False
    return bool(section.get("tie_word_embeddings", bool))


def _text(section: Section) -> TextConfig:
    section.require(FIXED_TEXT)
    theta, mrope_section = _rotary(section)
    sizes = {
        name: section.get(name, int)
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
            "max_position_embeddings",
        )
    }
    return TextConfig(
        **sizes,
        rms_norm_eps=section.get("rms_norm_eps", float),
        rope_theta=theta,
        mrope_section=mrope_section,
    )


def _rotary(section: Section) -> tuple[float, tuple[int, ...]]:
    """theta and M-RoPE sections from `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling` (4.57)."""
    if section.content.get("rope_parameters") is not None:
        rotary = section.section("rope_parameters")
        theta = rotary.get("rope_theta", float)
    else:
        rotary = section.section("rope_scaling")
        theta = section.get("rope_theta", float)
    rotary.require(FIXED_ROTARY)
    sizes = rotary.get("mrope_section", list)
    if len(sizes) != 3 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise CheckpointError(f"{rotary.where}: mrope_section is {sizes}, expected three positive integers.")
    return theta, tuple(sizes)


def _vision(section: Section) -> VisionConfig:
    section.require(FIXED_VISION)
    names = [name for name in VisionConfig.__dataclass_fields__ if name != "deepstack_visual_indexes"]
    indexes = section.get("deepstack_visual_indexes", list)
    config = VisionConfig(**{name: section.get(name, int) for name in names}, deepstack_visual_indexes=tuple(indexes))
    valid = all(isinstance(index, int) and 0 <= index < config.depth for index in indexes)
    if not indexes or not valid or len(set(indexes)) != len(indexes):
        raise CheckpointError(
            f"{section.where}: deepstack_visual_indexes is {indexes}, "
            f"expected different layers between 0 and {config.depth - 1}."
        )
    return config


def _require_consistent(config: ModelConfig, where: str) -> None:
    text, vision = config.text, config.vision
    sizes = [*vars(text).values(), *vars(vision).values()]
    head_dim = vision.hidden_size // max(vision.num_heads, 1)
    rules = {
        "every size must be positive": all(size > 0 for size in sizes if not isinstance(size, tuple)),
        "text head_dim must be a multiple of 8": text.head_dim % 8 == 0,
        "num_attention_heads must be a multiple of num_key_value_heads": not (
            text.num_attention_heads % max(text.num_key_value_heads, 1)
        ),
        "mrope_section must add up to half of head_dim": sum(text.mrope_section) * 2 == text.head_dim,
        "vision hidden_size must divide by num_heads into heads of a multiple of 4": (
            vision.hidden_size == head_dim * vision.num_heads and head_dim % 4 == 0
        ),
        "num_position_embeddings must be a square": (
            isqrt(vision.num_position_embeddings) ** 2 == vision.num_position_embeddings
        ),
        "vision out_hidden_size must equal text hidden_size": vision.out_hidden_size == text.hidden_size,
        "num_hidden_layers must be greater than the number of DeepStack layers": (
            text.num_hidden_layers > len(vision.deepstack_visual_indexes)
        ),
    }
    for rule, holds in rules.items():
        if not holds:
            raise CheckpointError(f"{where}: {rule}; this checkpoint cannot be exported.")
