"""The torch reference that packages are verified against: checkpoint folder and items in, numpy stages out.

Mirrors Qwen3VLEmbedder and Qwen3VLReranker of QwenLM/Qwen3-VL-Embedding over transformers 4.57, in float32 on
the CPU, and shares no code with runtime. Unlike them it raises where a picture or video cannot be read.
"""

import importlib
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.reference_prompt import Item, ReferenceOptions, embedder_messages, reranker_messages, truncate
from export.reference_settings import copy_processor, reference_config
from runtime.errors import CheckpointError, MissingExtraError

_KEPT: list[Any] = []  # torch forgets the operators of a library object that is garbage collected


@dataclass(frozen=True)
class ReferenceStages:
    """What the reference computes for one prompt of S tokens, V of them visual, D wide; L DeepStack levels.

    Visual rows stand in the order of their tokens in the prompt, pictures and videos together.
    """

    prompt: str  # as rendered, one pad token per picture or video
    input_ids: NDArray[np.int64]  # [S]
    pixel_values: NDArray[np.float32] | None  # [patches, 1536], pictures
    pixel_values_videos: NDArray[np.float32] | None  # [patches, 1536]
    image_grid_thw: NDArray[np.int64] | None  # [pictures, 3] in patches
    video_grid_thw: NDArray[np.int64] | None  # [videos, 3]
    position_ids: NDArray[np.int64]  # [3, S]: time, height, width
    visual_tokens: NDArray[np.float32]  # [V, D]
    deepstack: NDArray[np.float32]  # [L, V, D]
    embedding: NDArray[np.float32]  # [D], the last token's hidden state, not normalised
    logit: float | None  # the reranker's, before the sigmoid


@cache
def prepare_reference_imports() -> None:
    """Make torch, transformers and qwen_vl_utils import together; MissingExtraError if one is missing."""
    # torchvision's own reader is gone and torchcodec does not load beside a CPU torch.
    os.environ.setdefault("FORCE_QWENVL_VIDEO_READER", "decord")
    try:
        torch = importlib.import_module("torch")
        _declare_torchvision_operators(torch)
        for name in ("torchvision", "transformers", "qwen_vl_utils", "decord"):
            importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"the torch reference needs {error.name}, which is not installed: install torch, then run "
            '`pip install "qwen3vl-edge[reference]"`.'
        ) from error


class ReferenceEmbedder:
    """Qwen3VLEmbedder of the reference; CheckpointError where the folder does not hold such a model."""

    def __init__(self, folder: Path, options: ReferenceOptions | None = None) -> None:
        self._options = options or ReferenceOptions()
        self._model = _load_model("Qwen3VLModel", folder)
        self._processor = _load_processor(folder, padding_side="right")

    def embed(self, items: Sequence[Item], *, normalize: bool = True) -> NDArray[np.float32]:
        """Embeddings [N, D] of the items as one right-padded batch (`process` of the reference)."""
        torch = importlib.import_module("torch")
        _, inputs = self._inputs(items)
        with torch.no_grad():
            hidden = self._model(**inputs).last_hidden_state
        last = inputs["attention_mask"].sum(dim=1) - 1
        embeddings = hidden[torch.arange(len(items)), last]
        if normalize:
            embeddings = torch.nn.functional.normalize(embeddings, p=2, dim=-1)
        result: NDArray[np.float32] = embeddings.numpy()
        return result

    def stages(self, item: Item) -> ReferenceStages:
        """Every stage of one item on its own."""
        prompts, inputs = self._inputs([item])
        return _stages(self._model, prompts[0], inputs)

    def _inputs(self, items: Sequence[Item]) -> tuple[list[str], Any]:
        prompts, media = _render(self._processor, [embedder_messages(item, self._options) for item in items])
        limit = self._options.max_length or 8192
        text = {"padding": True, "truncation": True, "max_length": limit, "return_tensors": "pt"}
        return prompts, self._processor(text=prompts, **text, **media)


class ReferenceReranker:
    """Qwen3VLReranker of the reference; CheckpointError where the folder does not hold such a model."""

    def __init__(self, folder: Path, options: ReferenceOptions | None = None) -> None:
        self._options = options or ReferenceOptions()
        model = _load_model("Qwen3VLForConditionalGeneration", folder)
        self._model = model.model
        self._processor = _load_processor(folder, padding_side="left")
        vocabulary = self._processor.tokenizer.get_vocab()
        rows = model.lm_head.weight.detach()
        self._score_row = rows[vocabulary["yes"]] - rows[vocabulary["no"]]  # [D]

    def score(self, inputs: Item) -> list[float]:
        """Relevance, 0 to 1, of each inputs["documents"] to inputs["query"] (`process` of the reference)."""
        torch = importlib.import_module("torch")
        if not inputs.get("query") or not inputs.get("documents"):
            return []
        scores = []
        for document in inputs["documents"]:
            _, pair = self._inputs(inputs, document)
            with torch.no_grad():
                last = self._model(**pair).last_hidden_state[:, -1]
            scores.append(torch.sigmoid(self._logit(last)).item())
        return scores

    def stages(self, query: Item, document: Item, instruction: str | None = None) -> ReferenceStages:
        """Every stage of one pair, the logit included."""
        torch = importlib.import_module("torch")
        prompt, pair = self._inputs({"query": query, "instruction": instruction}, document)
        stages = _stages(self._model, prompt, pair)
        return replace(stages, logit=self._logit(torch.from_numpy(stages.embedding)[None]).item())

    def _logit(self, last: Any) -> Any:
        return importlib.import_module("torch").nn.functional.linear(last, self._score_row[None])  # [1, 1]

    def _inputs(self, inputs: Item, document: Item) -> tuple[str, Any]:
        torch = importlib.import_module("torch")
        prompts, media = _render(self._processor, [reranker_messages(inputs, document, self._options)])
        pair = self._processor(text=prompts, return_tensors="pt", **media)
        limit = self._options.max_length or 10240
        special = set(self._processor.tokenizer.all_special_ids)
        ids = truncate(pair["input_ids"][0].tolist(), limit, special)
        pair["input_ids"] = torch.tensor([ids])
        pair["attention_mask"] = torch.ones_like(pair["input_ids"])
        return prompts[0], pair


def _render(processor: Any, conversations: list[list[Item]]) -> tuple[list[str], Item]:
    """The prompts, and what the processor is given beside them; errors in a picture or video propagate."""
    prompts = processor.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False)
    images, videos, media = importlib.import_module("qwen_vl_utils").process_vision_info(
        conversations, image_patch_size=16, return_video_metadata=True, return_video_kwargs=True
    )
    if videos is not None:
        media |= {
            "videos": [frames for frames, _ in videos],
            "video_metadata": [facts for _, facts in videos],
        }
    return prompts, media | {"images": images, "do_resize": False}


def _stages(model: Any, prompt: str, inputs: Any) -> ReferenceStages:
    torch = importlib.import_module("torch")
    ids = inputs["input_ids"]
    grids = {name: inputs.get(name) for name in ("image_grid_thw", "video_grid_thw")}
    kinds = {"pixel_values": model.config.image_token_id, "pixel_values_videos": model.config.video_token_id}
    visual = torch.isin(ids[0], torch.tensor(list(kinds.values())))
    width, levels = model.config.text_config.hidden_size, model.config.vision_config.deepstack_visual_indexes
    rows = torch.zeros(1 + len(levels), int(visual.sum()), width)  # the merger's, then DeepStack's
    with torch.no_grad():
        positions, _ = model.get_rope_index(ids, **grids, attention_mask=inputs["attention_mask"])
        last = model(**inputs).last_hidden_state[0, -1]
        for (name, token), grid in zip(kinds.items(), grids.values(), strict=True):
            if name in inputs:
                tokens, deepstack = model.get_image_features(inputs[name], grid)
                rows[:, ids[0][visual] == token] = torch.stack([torch.cat(tokens), *deepstack])
    return ReferenceStages(
        prompt=prompt,
        input_ids=_numpy(ids[0]),
        pixel_values=_numpy(inputs.get("pixel_values")),
        pixel_values_videos=_numpy(inputs.get("pixel_values_videos")),
        image_grid_thw=_numpy(grids["image_grid_thw"]),
        video_grid_thw=_numpy(grids["video_grid_thw"]),
        position_ids=_numpy(positions[:, 0]),
        visual_tokens=_numpy(rows[0]),
        deepstack=_numpy(rows[1:]),
        embedding=_numpy(last),
        logit=None,
    )


def _numpy(tensor: Any) -> Any:
    return None if tensor is None else tensor.numpy()


def _load_model(name: str, folder: Path) -> Any:
    prepare_reference_imports()
    transformers = importlib.import_module("transformers")
    config = transformers.Qwen3VLConfig.from_dict(reference_config(folder))
    # Files name the body "model.…", which the bare model's own loading does not take off.
    body = {} if name.endswith("ForConditionalGeneration") else {r"^model\.": ""}
    # float32 and sdpa are what the reference's classes get by default.
    model, loading = getattr(transformers, name).from_pretrained(
        str(folder),
        config=config,
        dtype=importlib.import_module("torch").float32,
        attn_implementation="sdpa",
        key_mapping=body,
        output_loading_info=True,
    )
    missing = sorted(loading["missing_keys"])
    if missing == ["lm_head.weight"] and config.tie_word_embeddings:
        # The outer statement, which transformers 5 goes by.
        model.lm_head.weight, missing = model.get_input_embeddings().weight, []
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors of {name}, the first being {missing[0]}; "
            "download the checkpoint again."
        )
    return model.eval()


def _load_processor(folder: Path, *, padding_side: str) -> Any:
    processor = importlib.import_module("transformers").Qwen3VLProcessor
    with tempfile.TemporaryDirectory() as copy:
        copy_processor(folder, Path(copy))
        return processor.from_pretrained(copy, padding_side=padding_side)


def _declare_torchvision_operators(torch: Any) -> None:
    """Let a CUDA build of torchvision be imported beside a CPU build of torch.

    There its extension does not load, and its import fails for want of two operators that nothing here calls.
    """
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    for extension in Path(package.origin).parent.glob("_C*"):
        if extension.suffix in (".so", ".pyd", ".dylib"):
            try:
                torch.ops.load_library(str(extension))
                return
            except OSError:
                continue
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)
