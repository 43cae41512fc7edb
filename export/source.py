"""Where a model name leads: a local folder, an installed small model, or a repository in huggingface_hub's cache."""

import os
import re
from pathlib import Path

from export.adapter import ADAPTER_CONFIG, require_no_adapter
from export.checkpoint import INDEX_FILE, SINGLE_FILE, read_weight_map
from runtime.errors import CheckpointError, MissingExtraError

PUBLISHED = (
    "Qwen3-VL-Embedding-2B",
    "Qwen3-VL-Embedding-8B",
    "Qwen3-VL-Reranker-2B",
    "Qwen3-VL-Reranker-8B",
)

# Trained by training/ and installed with the package.
SMALL = ("tiny", "tiny-reranker")
_INSTALLED = Path(__file__).parent / "checkpoints"

# All that an export reads; fnmatch's * crosses folders, hence the second list.
_WANTED = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "*.safetensors",
    INDEX_FILE,
    "modules.json",
    "1_*/config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.*",
    "defaults.json",
    ADAPTER_CONFIG,  # not read, but refused
]
_UNWANTED = ["*/*.safetensors"]
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def find_checkpoint(model: str, *, revision: str | None = None) -> Path:
    """The folder of a checkpoint: an existing folder, one of SMALL, a published name, or a hub repository.

    A repository is fetched from $HF_ENDPOINT (default huggingface.co) into huggingface_hub's cache and served
    from there when the hub cannot be reached. Raises CheckpointError when the name leads nowhere or the
    download fails, and MissingExtraError when huggingface_hub is needed and not installed.
    """
    path = Path(os.path.expanduser(model))
    if not path.is_dir() and model in SMALL:
        path = _INSTALLED / model
    if model and path.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"--revision {revision} has no meaning for the folder {path}: leave it out, or give a repository."
            )
        return path
    return _fetch(_repository(model, path), revision)


def _repository(model: str, path: Path) -> str:
    """The repository id that `model`, which is no folder, stands for."""
    if path.is_file():
        raise CheckpointError(f"{path} is a file: give the folder that holds config.json and the weights.")
    published = {name.lower(): name for name in PUBLISHED}
    if model.lower() in published:
        return f"Qwen/{published[model.lower()]}"
    if _REPOSITORY.fullmatch(model):
        return model
    names = ", ".join((*PUBLISHED, *SMALL))
    if model.startswith((".", "~")) or "/" in model or "\\" in model:
        raise CheckpointError(
            f"There is no folder {path}: give an existing checkpoint folder, one of {names}, or a"
            " repository as org/name."
        )
    raise CheckpointError(
        f"{model!r} is neither a folder nor a known model: give a checkpoint folder, one of "
        f"{names}, or a repository as org/name."
    )


def _fetch(repository: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f'Fetching {repository} needs huggingface_hub: pip install "qwen3vl-edge[export]", or give a folder.'
        ) from error
    # Read now: huggingface_hub reads it once, at its first import.
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    # From huggingface_hub 1.0 on, transport errors are httpx's and no OSError; this is the base of them all.
    transport_error: type[Exception] = HfHubHTTPError.__mro__[1]
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            endpoint=endpoint,
            allow_patterns=_WANTED,
            ignore_patterns=_UNWANTED,
        )
    # RuntimeError is what the hub's accelerated transfer (hf_xet) raises.
    except (OSError, RuntimeError, ValueError, transport_error) as error:
        if snapshot := getattr(error, "snapshot_path", None):  # later versions see gaps themselves
            _require_complete(Path(snapshot), repository)
        raise CheckpointError(_explain(error, repository, revision, endpoint)) from error
    _require_complete(Path(folder), repository)
    return Path(folder)


def _explain(error: Exception, repository: str, revision: str | None, endpoint: str) -> str:
    """One sentence for what huggingface_hub raised; subclasses stand before their bases."""
    from huggingface_hub import errors

    # A refusal of the listing arrives wrapped as "not in the cache".
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        unreachable, error = True, error.__cause__
    else:
        unreachable = isinstance(error, errors.LocalEntryNotFoundError)
    by_hand = f"hf download {repository} --local-dir DIR or modelscope download --model {repository} --local_dir DIR"
    response = error.response if isinstance(error, errors.HfHubHTTPError) else None
    status = None if response is None else response.status_code
    if isinstance(error, errors.HFValidationError):
        return f"{repository} is no folder here and no possible repository ({_reason(error)}): check the name."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} at {endpoint} has no revision {revision!r}: give a branch, tag or commit of it."
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return (
            f"{endpoint} refuses access to {repository}: accept its conditions at {endpoint}/{repository}, "
            "run hf auth login, then run this command again."
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        if isinstance(error, errors.EntryNotFoundError):
            return (
                f"{repository} at {endpoint} lists a file that it does not hold ({_reason(error)}): "
                "give another --revision, or a complete folder with --model DIR."
            )
        return (
            f"{repository} is no folder here and no public repository at {endpoint}: check the name, or run "
            "hf auth login if it is private."
        )
    if unreachable:
        return (
            f"{repository} is no folder here, not wholly in the cache, and {endpoint} cannot be reached "
            f"({_reason(error)}): "
            f"where there is a network run {by_hand}, then pass that folder with --model DIR."
        )
    return (
        f"The download of {repository} from {endpoint} broke off ({_reason(error)}): run this command again, "
        f"it resumes with what is not finished, or run {by_hand} and pass --model DIR."
    )


def _reason(error: BaseException) -> str:
    """The first sentence of an error, named by its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].split('. ')[0].rstrip('.')}" if lines else type(error).__name__


def _require_complete(folder: Path, repository: str) -> None:
    """Refuse a snapshot with gaps: huggingface_hub hands out a half-filled cache when it is offline."""
    require_no_adapter(folder)
    needed = ["config.json", "tokenizer.json"]
    if (folder / INDEX_FILE).is_file():
        needed += sorted(set(read_weight_map(folder).values()))
    else:
        needed += [SINGLE_FILE]
    if missing := [name for name in needed if not (folder / name).is_file()]:
        raise CheckpointError(
            f"The copy of {repository} in {folder} lacks {', '.join(missing)}: run this command again with a "
            "network to complete it, and choose another repository or --revision if the hub lacks it too."
        )
