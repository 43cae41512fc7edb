"""Files beside the weights that decide a result: the published ones pass, others are refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qwen_tokenizer import CHAT_TEMPLATE
from random_checkpoint import TINY_2B

from export.blueprint import read_blueprint
from export.source import SMALL, find_checkpoint
from runtime.errors import CheckpointError
from runtime.manifest import Task

Folders = Callable[..., Path]
PROCESSORS = ["preprocessor_config.json", "video_preprocessor_config.json"]


def read(folder: Path, task: Task = "embedding") -> list[str]:
    """What was said about a folder that is accepted."""
    said: list[str] = []
    read_blueprint(folder, task, said.append)
    return said


def changed(folder: Path, output: Path, name: str, **values: Any) -> Path:
    """A copy without weights whose JSON file `name` has other values, None for no such key."""
    shutil.copytree(folder, output, ignore=shutil.ignore_patterns("*.safetensors"))
    content = json.loads((output / name).read_text(encoding="utf-8")) | values
    content = {key: value for key, value in content.items() if value is not None}
    (output / name).write_text(json.dumps(content), encoding="utf-8")
    return output


def refusal(folder: Path, task: Task = "embedding") -> str:
    with pytest.raises(CheckpointError) as caught:
        read(folder, task)
    message = str(caught.value)
    assert message.endswith("only; export a checkpoint that has that.") and "\n" not in message
    return message.removeprefix(f"{folder}/")


@pytest.mark.parametrize("task", ["embedding", "reranker"])
def test_what_is_published_passes(checkpoint: Folders, task: Task) -> None:
    assert read(checkpoint(TINY_2B, task), task) == []


@pytest.mark.parametrize("name", SMALL)
def test_the_small_pair_passes(name: str) -> None:
    assert read(find_checkpoint(name), "reranker" if "reranker" in name else "embedding") == []


@pytest.mark.parametrize(
    "settings",
    [
        {"pooling_mode": "lasttoken", "pooling_mode_lasttoken": None},
        {"pooling_mode_mean_tokens": False, "include_prompt": True},
    ],
)
def test_later_and_earlier_ways_to_say_last_token(
    checkpoint: Folders, tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = changed(checkpoint(TINY_2B, "embedding"), tmp_path / "copy", "1_Pooling/config.json", **settings)
    assert read(folder) == []


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"pooling_mode": "mean", "pooling_mode_lasttoken": None}, "'mean'"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}, "'mean_tokens'"),
        ({"pooling_mode_mean_tokens": True}, "'lasttoken+mean_tokens'"),
    ],
)
def test_another_pooling(checkpoint: Folders, tmp_path: Path, settings: dict[str, Any], found: str) -> None:
    folder = changed(checkpoint(TINY_2B, "embedding"), tmp_path / "copy", "1_Pooling/config.json", **settings)
    assert refusal(folder).startswith(f"1_Pooling/config.json pools by {found}, and the runtime does 'lasttoken' only")


def test_a_module_that_is_not_known(checkpoint: Folders, tmp_path: Path) -> None:
    folder = changed(checkpoint(TINY_2B, "embedding"), tmp_path / "copy", "config.json")
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    assert refusal(folder).startswith("modules.json has a module Dense, and the runtime does one of Transformer, ")


def test_other_answers(checkpoint: Folders, tmp_path: Path) -> None:
    name = "1_LogitScore/config.json"
    folder = changed(checkpoint(TINY_2B, "reranker"), tmp_path / "copy", name, true_token_id=2152, false_token_id=9693)
    assert refusal(folder, "reranker").startswith(f"{name} has true_token_id 2152, and the runtime does 9693 only")


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_mean", [0.48, 0.46, 0.41]),
        ("image_std", [0.27, 0.26, 0.28]),
        ("patch_size", 14),
        ("merge_size", 4),
        ("rescale_factor", 1 / 127.5),
        ("do_normalize", False),
    ],
)
def test_other_pixels(checkpoint: Folders, tmp_path: Path, name: str, key: str, value: object) -> None:
    folder = changed(checkpoint(TINY_2B, "embedding"), tmp_path / "copy", name, **{key: value})
    assert refusal(folder).startswith(f"{name} has {key} {value!r}, and the runtime does ")


@pytest.mark.parametrize("section", ["image_processor", "video_processor"])
def test_other_pixels_as_transformers_5_says_it(checkpoint: Folders, tmp_path: Path, section: str) -> None:
    folder = changed(checkpoint(TINY_2B, "embedding"), tmp_path / "copy", "config.json")
    (folder / "processor_config.json").write_text(json.dumps({section: {"image_mean": [0.4] * 3}}), encoding="utf-8")
    assert refusal(folder).startswith("processor_config.json has image_mean [0.4, 0.4, 0.4], and the runtime does ")


def test_budgets_are_the_callers(checkpoint: Folders, tmp_path: Path) -> None:
    """Both reference classes set their own; rescale_factor has all its digits."""
    more = {"min_pixels": 65536, "size": {"longest_edge": 1, "shortest_edge": 1}, "rescale_factor": 0.00392156862745098}
    assert read(changed(checkpoint(TINY_2B, "embedding"), tmp_path / "copy", PROCESSORS[0], **more)) == []


@pytest.mark.parametrize("task", ["embedding", "reranker"])
@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_another_prompt(checkpoint: Folders, tmp_path: Path, task: Task, name: str) -> None:
    folder = changed(checkpoint(TINY_2B, task), tmp_path / "copy", "config.json")
    template = CHAT_TEMPLATE.replace("<|im_start|>assistant", "<|im_start|>assistant\n<think>")
    (folder / "chat_template.jinja").unlink()
    if name.endswith(".jinja"):
        (folder / name).write_text(template, encoding="utf-8")
    else:
        (folder / name).write_text(json.dumps({"chat_template": template}), encoding="utf-8")
    message = refusal(folder, task)
    assert message.startswith(f"{name} makes the prompt '<|im_start|>system") and "<think>" in message


def test_a_template_that_is_no_text_is_named(checkpoint: Folders, tmp_path: Path) -> None:
    folder = changed(checkpoint(TINY_2B, "embedding"), tmp_path / "copy", "config.json")
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(
        CheckpointError, match=r"chat_template\.jinja cannot be read .*; download it again or remove it\.$"
    ):
        read(folder)


@pytest.mark.parametrize(
    "template",
    ["{{ strftime_now('%Y') }}", "{{ 1 / 0 }}", "{{ 9.0 ** 999 }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"],
)
def test_a_template_that_does_not_render_is_said(checkpoint: Folders, tmp_path: Path, template: str) -> None:
    folder = changed(checkpoint(TINY_2B, "embedding"), tmp_path / "copy", "config.json")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (said,) = read(folder)
    assert said.startswith(f"{folder / 'chat_template.jinja'} could not be compared with the prompts of the runtime (")


def test_settings_that_are_nested_too_deeply_are_named(checkpoint: Folders, tmp_path: Path) -> None:
    folder = changed(checkpoint(TINY_2B, "embedding"), tmp_path / "copy", "preprocessor_config.json")
    (folder / "preprocessor_config.json").write_text("[" * 10**5, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json cannot be read"):
        read(folder)
