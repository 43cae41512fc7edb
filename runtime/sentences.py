"""sentence-transformers' `encode`: its inputs become dicts of `process`, its other options a sentence."""

from collections.abc import Mapping

from PIL import Image

from runtime.errors import InputError
from runtime.notice import warn_caller
from runtime.prompts.inputs import looks_like_media

VIDEO_EXTENSIONS = (".mp4", ".avi", ".mov", ".wmv", ".flv", ".mkv")  # what sentence-transformers takes for a video
# They change how the work is done, and not the result.
WITHOUT_EFFECT = {
    "batch_size": "inputs are packed by tokens; set batch_tokens in the constructor",
    "show_progress_bar": "set show_progress in the constructor",
    "device": "it was chosen at export (--target cpu or cuda)",
    "pool": "one process uses all cores; set threads in the constructor",
    "chunk_size": "one process uses all cores; set threads in the constructor",
}
# The only value that gives what is returned here, and what to do about any other.
FIXED: dict[str, tuple[object, str]] = {
    "prompt_name": (None, "packages keep no named prompts; pass the words as prompt"),
    "output_value": ("sentence_embedding", "there is one vector an input"),
    "precision": ("float32", "round the vectors yourself"),
    "convert_to_numpy": (True, "make what you need of the numpy array"),
    "convert_to_tensor": (False, "call torch.from_numpy on the array"),
}


def explain_encode_options(options: Mapping[str, object]) -> None:
    """Warn of options without effect; InputError for a value that asks for another result, TypeError if unknown."""
    for name, value in options.items():
        if name in FIXED:
            only, remedy = FIXED[name]
            if value != only:
                raise InputError(f"encode: {name} is {value!r}, but only {only!r} is possible here; {remedy}.")
        elif name not in WITHOUT_EFFECT:
            raise TypeError(f"encode: unexpected keyword argument {name!r}")
        elif value is not None:
            warn_caller(f"{name} has no effect here: {WITHOUT_EFFECT[name]}.")


def encode_items(inputs: object, prompt: str | None) -> tuple[list[dict[str, object]], bool]:
    """The dicts of `process`, and whether `inputs` was a single input. A dict's own instruction comes before `prompt`.

    Raises InputError for what is neither string, dict nor PIL image.
    """
    if not isinstance(inputs, list | tuple):
        return [_item(inputs, prompt, "inputs")], True
    return [_item(value, prompt, f"inputs[{index}]") for index, value in enumerate(inputs)], False


def _item(value: object, prompt: str | None, where: str) -> dict[str, object]:
    item = _content(value, where)
    return {**item, "instruction": prompt} if item.get("instruction") is None else item


def _content(value: object, where: str) -> dict[str, object]:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Image.Image):
        return {"image": value}
    if not isinstance(value, str):
        raise InputError(
            f"{where} is of type {type(value).__name__}, expected a string, a dict or a PIL image; "
            "write {'image': ...} or {'video': ...}."
        )
    # sentence-transformers would fetch it. A text from elsewhere must not decide what is opened, and a file that is
    # missing must not become a text.
    if looks_like_media(value) or value.lower().endswith(VIDEO_EXTENSIONS):
        raise InputError(
            f"{where} is the string {value!r:.80}, which may mean a file or the words; "
            "write {'image': ...}, {'video': ...} or {'text': ...}."
        )
    return {"text": value}
