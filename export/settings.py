"""Files beside config.json and the weights that decide a result too; what the runtime would not do is refused.

modules.json, 1_Pooling/, 1_LogitScore/   what sentence-transformers puts behind the model
preprocessor_config.json, video_…, processor_config.json    how pixels become patches
chat_template.jinja, .json, tokenizer_config.json   how an input becomes a prompt
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from export.reference_prompt import ReferenceOptions, embedder_messages, reranker_messages
from export.reference_settings import PROCESSOR, SECTIONS
from runtime.errors import CheckpointError
from runtime.json_text import read_json
from runtime.manifest import Task, VisionConfig
from runtime.prompts.inputs import parse_content
from runtime.prompts.prompt import embedding_prompt, rerank_prompt

POOLING = "Pooling"
SCORE_HEADS = ("LogitScore", "CausalScoreHead")  # both names are published
KNOWN_MODULES = ("Transformer", POOLING, "Normalize", *SCORE_HEADS)
LAST_TOKEN = "lasttoken"
OLD_MODE = "pooling_mode_"  # earlier versions have a flag for each way of pooling
HALF = [0.5, 0.5, 0.5]
FIXED_PIXELS = {
    "image_mean": HALF,
    "image_std": HALF,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_center_crop": False,
    "resample": 3,
    "rescale_factor": 1 / 255,
}
SAMPLE = {"text": "some words", "image": "picture.png"}
ITEM, QUERY, FIND = {**SAMPLE, "instruction": "Find it."}, {"text": "a question"}, "Find it."


@dataclass(frozen=True)
class Module:
    """A line of modules.json: the last part of its type, and its folder."""

    kind: str
    folder: Path


def require_known_settings(
    folder: Path, task: Task, vision: VisionConfig, answers: tuple[int, int], say: Callable[[str], object]
) -> None:
    """CheckpointError for settings under which the reference gives something else than the runtime.

    `answers`: the ids of "yes" and "no".
    """
    for module in read_modules(folder):
        if module.kind not in KNOWN_MODULES:
            raise _refusal(folder / "modules.json", f"has a module {module.kind}", f"one of {', '.join(KNOWN_MODULES)}")
        settings = _read(module.folder / "config.json") if module.folder != folder else {}
        if module.kind == POOLING:
            _require_last_token(module.folder / "config.json", settings)
        elif module.kind in SCORE_HEADS:
            expected = dict(zip(("true_token_id", "false_token_id"), answers, strict=True))
            _require(module.folder / "config.json", settings, expected)
    for path, settings in _processors(folder):
        _require(path, settings, FIXED_PIXELS | _patches(vision))
    _require_prompt(folder, task, say)


def read_modules(folder: Path) -> list[Module]:
    """What modules.json lists, nothing where there is none. Raises CheckpointError."""
    path = folder / "modules.json"
    try:
        modules = read_json(path)
        return [Module(str(each["type"]).rpartition(".")[2], folder / str(each.get("path", ""))) for each in modules]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}); download it again or remove it.") from error


def _require_last_token(path: Path, settings: Mapping[str, Any]) -> None:
    modes = [key.removeprefix(OLD_MODE) for key, on in settings.items() if key.startswith(OLD_MODE) and on is True]
    found = settings.get("pooling_mode", "+".join(modes) or LAST_TOKEN)
    if found != LAST_TOKEN:
        raise _refusal(path, f"pools by {found!r}", repr(LAST_TOKEN))


def _processors(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(file, settings) for pictures and for videos, as either version of transformers saves them."""
    whole = _read(folder / PROCESSOR)
    for section, name in SECTIONS.items():
        yield folder / name, _read(folder / name)
        settings = whole.get(section)
        yield folder / PROCESSOR, settings if isinstance(settings, dict) else {}


def _patches(vision: VisionConfig) -> dict[str, int]:
    return {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }


def _require(path: Path, settings: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """What is not stated has the reference's default, which is the expected one."""
    for key, value in expected.items():
        found = settings.get(key)
        close = isinstance(value, float) and isinstance(found, float) and abs(found - value) < 1e-9
        if found is not None and found != value and not close:
            raise _refusal(path, f"has {key} {found!r}", repr(value))


def _require_prompt(folder: Path, task: Task, say: Callable[[str], object]) -> None:
    found = next(_templates(folder), None)
    if found is None:
        return
    path, text = found
    options = ReferenceOptions(default_instruction=FIND)
    content = parse_content(SAMPLE, "sample")
    if task == "embedding":
        messages, expected = embedder_messages(ITEM, options), embedding_prompt(content, FIND)
    else:
        messages = reranker_messages({"query": QUERY}, SAMPLE, options)
        expected = rerank_prompt(parse_content(QUERY, "sample"), content, FIND)
    # As transformers' chat_template_utils sets it up.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols])
    try:
        prompt = environment.from_string(text).render(messages=messages, add_generation_prompt=True)
    except (
        TemplateError,
        ArithmeticError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        say(f"{path} could not be compared with the prompts of the runtime ({error}).")
        return
    if prompt != expected:
        raise _refusal(path, f"makes the prompt {prompt!r:.400}", f"{expected!r}")


def _templates(folder: Path) -> Iterator[tuple[Path, str]]:
    """(file, template) in the order in which transformers looks for them."""
    path = folder / "chat_template.jinja"
    try:
        yield path, path.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); download it again or remove it.") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = _read(folder / name).get("chat_template")
        if isinstance(template, str):
            yield folder / name, template


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file. Raises CheckpointError."""
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return content
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); download it again or remove it.") from error


def _refusal(path: Path, found: str, expected: str) -> CheckpointError:
    return CheckpointError(f"{path} {found}, and the runtime does {expected} only; export a checkpoint that has that.")
