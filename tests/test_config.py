"""config.json in its two spellings, and the settings that the graphs cannot express."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from checkpoint_shapes import SHAPE_2B, SHAPES, TINY_2B, Shape, config_json

from export.config import ModelConfig, read_config
from runtime.errors import CheckpointError

Content = dict[str, Any]


def written(folder: Path, content: object) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return read_config(folder)


def refusal(folder: Path, content: object) -> str:
    """The message of the error that reading raises, one sentence on one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        written(folder, content)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and message.startswith(str(folder / "config.json"))
    return message


@pytest.fixture
def content() -> Content:
    return config_json(TINY_2B, "bfloat16")


def respelled(content: Content) -> Content:
    """As transformers 5 writes it: theta and sections together."""
    text = content["text_config"]
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    return content


@pytest.mark.parametrize("spell", [dict, respelled], ids=["4.57", "5"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_size_is_read(tmp_path: Path, shape: Shape, spell: Callable[[Content], Content]) -> None:
    config = written(tmp_path, spell(config_json(shape, "bfloat16")))
    assert asdict(config.text) == asdict(shape.text) | {"max_position_embeddings": 262144}
    assert isinstance(config.text.rope_theta, float)
    assert asdict(config.vision) == asdict(shape.vision) | {"out_hidden_size": shape.text.hidden_size}
    assert config.tie_word_embeddings == shape.tied
    ids = config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id
    assert ids == (151655, 151656, 151652, 151653)


def test_the_published_numbers(tmp_path: Path) -> None:
    config = written(tmp_path, config_json(SHAPE_2B, "bfloat16"))
    assert (config.text.rope_theta, config.text.mrope_section) == (5e6, (24, 20, 20))
    assert config.vision.deepstack_visual_indexes == (5, 11, 17)


def test_an_empty_new_spelling_leaves_the_old_one(tmp_path: Path, content: Content) -> None:
    expected = written(tmp_path, content)
    content["text_config"]["rope_parameters"] = None
    assert written(tmp_path, content) == expected


@pytest.mark.parametrize("spell", [dict, respelled], ids=["4.57", "5"])
@pytest.mark.parametrize("key", ["rope_theta", "mrope_section"])
def test_theta_and_sections_have_no_default(
    tmp_path: Path, content: Content, key: str, spell: Callable[[Content], Content]
) -> None:
    text = spell(content)["text_config"]
    holder = next(place for place in (text, *text.values()) if isinstance(place, dict) and key in place)
    del holder[key]
    assert f"{key} is missing" in refusal(tmp_path, content)


def test_no_rotary_settings_at_all(tmp_path: Path, content: Content) -> None:
    del content["text_config"]["rope_scaling"]
    assert "text_config: rope_scaling is missing, expected dict" in refusal(tmp_path, content)


@pytest.mark.parametrize("sections", [[8, 8], [6, 5, 5.0], [16, 0, 0], [6, 5, "5"]])
def test_sections_that_are_none(tmp_path: Path, content: Content, sections: list[object]) -> None:
    content["text_config"]["rope_scaling"]["mrope_section"] = sections
    assert f"mrope_section is {sections}, expected three positive integers" in refusal(tmp_path, content)


# Where a setting stands, the only supported value, another one.
FIXED = {
    "quantization_config": (None, {"bits": 4}),
    "text_config.hidden_act": ("silu", "gelu"),
    "text_config.attention_bias": (False, True),
    "text_config.mlp_bias": (False, True),
    "text_config.use_sliding_window": (False, True),
    "text_config.sliding_window": (None, 4096),
    "text_config.partial_rotary_factor": (1.0, 0.5),
    "text_config.num_experts": (None, 128),
    "text_config.quantization_config": (None, {"bits": 4}),
    "text_config.rope_scaling.rope_type": ("default", "yarn"),
    "text_config.rope_scaling.type": ("default", "linear"),
    "text_config.rope_scaling.mrope_interleaved": (True, False),
    "text_config.rope_scaling.partial_rotary_factor": (1.0, 0.5),
    "vision_config.hidden_act": ("gelu_pytorch_tanh", "gelu"),
}


@pytest.mark.parametrize("path", FIXED)
def test_a_setting_that_changes_the_computation_is_refused(tmp_path: Path, content: Content, path: str) -> None:
    *sections, key = path.split(".")
    section = content
    for name in sections:
        section = section[name]
    section[key] = None
    written(tmp_path, content)  # as good as not there
    section[key], other = FIXED[path]
    written(tmp_path, content)
    section[key] = other
    where = "".join(f": {name}" for name in path.split("."))
    message = f"{where} is {other!r}, only {FIXED[path][0]!r} is supported"
    assert message in refusal(tmp_path, content)


@pytest.mark.parametrize("path", [path for path in FIXED if "rope_scaling" in path])
def test_the_new_spelling_is_checked_too(tmp_path: Path, content: Content, path: str) -> None:
    key, other = path.rpartition(".")[2], FIXED[path][1]
    respelled(content)["text_config"]["rope_parameters"][key] = other
    assert f"rope_parameters: {key} is {other!r}, only" in refusal(tmp_path, content)


INCONSISTENT: dict[str, tuple[str, str, object]] = {
    "every size must be positive": ("text_config", "intermediate_size", 0),
    "text head_dim must be a multiple of 8": ("text_config", "head_dim", 36),
    "num_attention_heads must be a multiple of num_key_value_heads": ("text_config", "num_key_value_heads", 3),
    "mrope_section must add up to half of head_dim": ("text_config", "head_dim", 40),
    "vision hidden_size must divide by num_heads into heads of a multiple of 4": ("vision_config", "num_heads", 5),
    "num_position_embeddings must be a square": ("vision_config", "num_position_embeddings", 2303),
    "vision out_hidden_size must equal text hidden_size": ("vision_config", "out_hidden_size", 65),
    "num_hidden_layers must be greater than the number of DeepStack layers": ("text_config", "num_hidden_layers", 3),
}


@pytest.mark.parametrize("rule", INCONSISTENT)
def test_sizes_that_do_not_fit_each_other(tmp_path: Path, content: Content, rule: str) -> None:
    section, key, value = INCONSISTENT[rule]
    content[section][key] = value
    assert refusal(tmp_path, content).endswith(f": {rule}; this checkpoint cannot be exported.")


@pytest.mark.parametrize(("section", "key"), [("vision_config", "num_heads"), ("text_config", "num_key_value_heads")])
def test_no_heads_are_no_division_by_zero(tmp_path: Path, content: Content, section: str, key: str) -> None:
    content[section][key] = 0
    assert "every size must be positive" in refusal(tmp_path, content)


def test_vision_heads_must_fill_quarters(tmp_path: Path, content: Content) -> None:
    content["vision_config"]["num_heads"] = 8  # 48 / 8 = 6
    assert "heads of a multiple of 4" in refusal(tmp_path, content)


@pytest.mark.parametrize("indexes", [[], [1, 1, 2], [1, 6], [-1, 2], ["1"]])
def test_deepstack_layers_must_exist_once(tmp_path: Path, content: Content, indexes: list[object]) -> None:
    content["vision_config"]["deepstack_visual_indexes"] = indexes
    message = refusal(tmp_path, content)
    assert f"deepstack_visual_indexes is {indexes}, expected different layers between 0 and 5" in message


@pytest.mark.parametrize(
    ("section", "key", "kind"),
    [
        *[("text_config", key, "int") for key in ("hidden_size", "num_hidden_layers", "vocab_size", "head_dim")],
        ("text_config", "max_position_embeddings", "int"),
        ("text_config", "rms_norm_eps", "float"),
        *[("vision_config", key, "int") for key in ("depth", "patch_size", "temporal_patch_size", "in_channels")],
        ("vision_config", "deepstack_visual_indexes", "list"),
    ],
)
def test_a_missing_or_mistyped_size_is_named(
    tmp_path: Path, content: Content, section: str, key: str, kind: str
) -> None:
    for value in ("7", True):
        content[section][key] = value
        assert f"{section}: {key} is {value!r}, expected {kind}" in refusal(tmp_path, content)
    del content[section][key]
    assert f"{section}: {key} is missing, expected {kind}" in refusal(tmp_path, content)


@pytest.mark.parametrize("key", ["text_config", "vision_config", "image_token_id", "vision_end_token_id"])
def test_a_missing_part_is_named(tmp_path: Path, content: Content, key: str) -> None:
    del content[key]
    assert f"config.json: {key} is missing" in refusal(tmp_path, content)


@pytest.mark.parametrize("inner", [True, False, None])
@pytest.mark.parametrize("outer", [True, False, None])
def test_both_levels_may_tie_the_head(tmp_path: Path, content: Content, outer: bool | None, inner: bool | None) -> None:
    """transformers 4.57 leaves the inner statement out where it is false, and takes an absent one for false."""
    for section, value in ((content, outer), (content["text_config"], inner)):
        section["tie_word_embeddings"] = value
        if value is None:
            del section["tie_word_embeddings"]
    config = written(tmp_path, content)
    assert config.tie_word_embeddings is bool(outer or inner)
    assert config.text_tie_word_embeddings is bool(inner)


@pytest.mark.parametrize("level", ["outer", "inner"])
def test_a_tied_head_is_true_or_false(tmp_path: Path, content: Content, level: str) -> None:
    section = content if level == "outer" else content["text_config"]
    section["tie_word_embeddings"] = "yes"
    assert "tie_word_embeddings is 'yes', expected bool" in refusal(tmp_path, content)
    section["tie_word_embeddings"] = None
    written(tmp_path, content)  # as good as not there


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl_moe", "qwen3", None])
def test_another_model_is_named(tmp_path: Path, content: Content, model_type: str | None) -> None:
    content["model_type"] = model_type
    assert f"model_type is {model_type!r}, expected 'qwen3_vl'" in refusal(tmp_path, content)


@pytest.mark.parametrize(("content", "found"), [([], "list"), ("text", "str"), (None, "NoneType")])
def test_a_config_that_is_no_object(tmp_path: Path, content: object, found: str) -> None:
    assert f"model_type is {found!r}" in refusal(tmp_path, content)


@pytest.mark.parametrize("raw", [b"{not json", b"\xff", b"", b"[" * 10**5], ids=["words", "bytes", "none", "deep"])
def test_a_config_that_is_no_json(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read .*download it again\."):
        read_config(tmp_path)


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json; pass the folder of a whole checkpoint\."):
        read_config(tmp_path)


def test_a_number_that_no_float_can_hold_is_refused(tmp_path: Path, content: Content) -> None:
    content["text_config"]["rms_norm_eps"] = 10**400
    assert "rms_norm_eps is 1000" in refusal(tmp_path, content)
