"""What the checkpoint's own tokenizer says: special ids, yes and no, and whether it ends on `<|endoftext|>`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.config import ModelConfig
from export.settings import POOLING, SCORE_HEADS, read_modules
from runtime.errors import CheckpointError
from runtime.json_text import read_json
from runtime.manifest import Task, TokenIds
from runtime.prompts.prompt import IMAGE_PAD, VIDEO_PAD

PAD = "<|endoftext|>"
YES, NO = "yes", "no"


@dataclass(frozen=True)
class TokenizerFacts:
    """Facts of `tokenizer.json`; `appends_pad` marks an embedding checkpoint's post-processor."""

    tokens: TokenIds
    yes: int
    no: int
    appends_pad: bool


@dataclass(frozen=True)
class TaskDecision:
    """The task and the sentence that says why."""

    task: Task
    reason: str


def read_tokenizer(folder: Path, config: ModelConfig) -> TokenizerFacts:
    """Read `tokenizer.json` of a checkpoint. Raises CheckpointError naming the file and what is missing."""
    path = folder / "tokenizer.json"
    try:
        content = read_json(path)
        added = {str(token["content"]): int(token["id"]) for token in content["added_tokens"]}
        special = tuple(sorted(int(token["id"]) for token in content["added_tokens"] if token["special"]))
        vocabulary = {str(token): int(index) for token, index in dict(content["model"]["vocab"]).items()}
        appends_pad = _appends(content.get("post_processor"), PAD)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no tokenizer.json; every checkpoint brings its own, download it."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}); download it again.") from error
    for word in (YES, NO):
        if word not in vocabulary:
            raise CheckpointError(f"{path} has no token {word!r}, which reranking scores; use the published tokenizer.")
    if PAD not in added:
        raise CheckpointError(f"{path} has no token {PAD}, which pads; use the published tokenizer.")
    _require_rows({**vocabulary, **added}, config.text.vocab_size, path)
    _require_pads(added, config, path)
    tokens = TokenIds(
        pad=added[PAD],
        image=config.image_token_id,
        video=config.video_token_id,
        vision_start=config.vision_start_token_id,
        vision_end=config.vision_end_token_id,
        special=special,
    )
    return TokenizerFacts(tokens, vocabulary[YES], vocabulary[NO], appends_pad)


def _require_pads(added: dict[str, int], config: ModelConfig, path: Path) -> None:
    """Refuse other ids of the pads than config.json's: a runtime finds that out at the first picture."""
    for token, key, index in (
        (IMAGE_PAD, "image_token_id", config.image_token_id),
        (VIDEO_PAD, "video_token_id", config.video_token_id),
    ):
        if added.get(token, index) != index:
            raise CheckpointError(
                f"{path} gives the token {token} the id {added[token]}, and config.json's {key} is {index}: use the "
                "tokenizer and the config.json that belong to the weights."
            )


def _require_rows(ids: dict[str, int], num_rows: int, path: Path) -> None:
    """Refuse ids that the token table has no row for: a runtime finds that out at the first text that holds one."""
    if outside := {token: index for token, index in ids.items() if not 0 <= index < num_rows}:
        token, index = next(iter(outside.items()))
        more = f" ({len(outside) - 1} more as well)" if len(outside) > 1 else ""
        raise CheckpointError(
            f"{path} gives the token {token!r} the id {index}{more}, and the token table of {num_rows} rows "
            "(text_config's vocab_size) has none for it: use the tokenizer that belongs to the weights, or the "
            "weights as saved after resize_token_embeddings."
        )


def decide_task(folder: Path, tokenizer: TokenizerFacts) -> TaskDecision:
    """Embedding or reranker, by the tokenizer's post-processor and the sentence-transformers modules beside it.

    Raises CheckpointError where the two disagree.
    """
    kinds = [module.kind for module in read_modules(folder)]
    by_modules: Task | None = None
    if any(kind in SCORE_HEADS for kind in kinds):
        by_modules = "reranker"
    elif POOLING in kinds:
        by_modules = "embedding"
    by_tokenizer: Task = "embedding" if tokenizer.appends_pad else "reranker"
    if by_modules not in (None, by_tokenizer):
        raise CheckpointError(
            f"{folder}: tokenizer.json is that of a checkpoint for {by_tokenizer}, modules.json says {by_modules}; "
            "say which with --task."
        )
    does = "appends" if tokenizer.appends_pad else "does not append"
    also = f", modules.json says {by_modules}" if by_modules else ""
    return TaskDecision(by_tokenizer, f"tokenizer.json {does} {PAD}{also}")


def _appends(post_processor: Any, token: str) -> bool:
    """Whether a template post-processor (alone or inside a sequence) ends a single text with `token`."""
    if not isinstance(post_processor, dict):
        return False
    if post_processor.get("type") == "Sequence":
        return any(_appends(each, token) for each in post_processor.get("processors", []))
    single = post_processor.get("single") or [{}]
    return bool(single[-1].get("SpecialToken", {}).get("id") == token)
