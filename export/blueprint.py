"""What a checkpoint folder says about the package to be made: sizes, tokenizer, task, head."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

from export.adapter import require_no_adapter
from export.config import ModelConfig, read_config
from export.heads import EmbeddingHead, Head, YesNoHead
from export.settings import require_known_settings
from export.tokenizer import TokenizerFacts, decide_task, read_tokenizer
from runtime.errors import CheckpointError
from runtime.json_text import read_json
from runtime.manifest import Defaults, Task
from runtime.prompts.encode import EncodeOptions, Encoder, make_encoder

# What the two reference classes default to: tokens, pixels (32 × 32 a visual token), frames a second, frames.
TOKEN_PIXELS = 32 * 32
EMBEDDER = Defaults(
    max_length=8192,
    min_pixels=4 * TOKEN_PIXELS,
    max_pixels=1800 * TOKEN_PIXELS,
    total_pixels=7680 * TOKEN_PIXELS,
    fps=1.0,
    max_frames=64,
    default_instruction="Represent the user's input.",
)
RERANKER = replace(
    EMBEDDER,
    max_length=10240,
    default_instruction="Given a search query, retrieve relevant candidates that answer the query.",
)
DEFAULTS: dict[Task, Defaults] = {"embedding": EMBEDDER, "reranker": RERANKER}
# Optional, beside config.json: what a checkpoint was trained with, where that differs from the above.
DEFAULTS_NAME = "defaults.json"


@dataclass(frozen=True)
class Blueprint:
    """One checkpoint, read and decided; no tensor was touched."""

    folder: Path
    config: ModelConfig
    tokenizer: TokenizerFacts
    task: Task
    defaults: Defaults

    @property
    def head(self) -> Head:
        """What becomes of the pooled state."""
        if self.task == "embedding":
            return EmbeddingHead(self.config.text.hidden_size)
        return YesNoHead(self.config, self.tokenizer.yes, self.tokenizer.no)

    @cached_property
    def encoder(self) -> Encoder:
        """That of the package; reading the tokenizer takes a second."""
        options = EncodeOptions(**asdict(self.defaults))
        return make_encoder(self.folder, self.config.vision, self.tokenizer.tokens, options)


def read_blueprint(folder: Path, task: Task | None, say: Callable[[str], object]) -> Blueprint:
    """Read config.json and tokenizer.json; for `task` None they decide, and `say` tells why. Raises CheckpointError."""
    require_no_adapter(folder)  # which is without a config.json where it stands alone
    config = read_config(folder)
    tokenizer = read_tokenizer(folder, config)
    if task is None:
        decision = decide_task(folder, tokenizer)
        say(f"task: {decision.task} ({decision.reason})")
        task = decision.task
    require_known_settings(folder, task, config.vision, (tokenizer.yes, tokenizer.no), say)
    return Blueprint(folder, config, tokenizer, task, read_defaults(folder, task))


def read_defaults(folder: Path, task: Task) -> Defaults:
    """The reference's defaults for a task, and what the checkpoint's own defaults.json changes. CheckpointError."""
    defaults, path = DEFAULTS[task], folder / DEFAULTS_NAME
    if not path.exists():
        return defaults
    try:
        changes = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); mend or remove it.") from error
    known = {field.name: getattr(defaults, field.name) for field in fields(defaults)}
    if not isinstance(changes, dict) or not changes.keys() <= known.keys():
        raise CheckpointError(f"{path} holds {changes!r:.80}, expected an object with some of {', '.join(known)}.")
    for name, value in changes.items():
        kind = type(known[name])
        if type(value) is not kind or (kind is not str and value <= 0):
            expected = "a text" if kind is str else f"a positive {kind.__name__}"
            raise CheckpointError(f"{path}: {name} is {value!r}, expected {expected}.")
    return replace(defaults, **changes)
