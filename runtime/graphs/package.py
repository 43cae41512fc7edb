"""Opening a package: manifest, options, tokenizer and sessions, the same way for embedder and reranker."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from runtime.errors import InputError, PackageError
from runtime.graphs.memory import MemoryMode, MemoryPolicy, memory_policy
from runtime.graphs.model import Model
from runtime.graphs.probe import stored_weights_are_exact
from runtime.graphs.session import default_threads, require_providers
from runtime.graphs.target import TARGETS
from runtime.graphs.unchanged import PackageFiles
from runtime.manifest import Manifest, Task
from runtime.notice import warn_caller
from runtime.prompts.encode import EncodeOptions, Encoder, make_encoder

OnError = Literal["raise", "skip"]
MOST_THREADS = 1024  # thousands spend minutes on waiting for each other
PER_TOKEN = "int8-per-token"  # the scheme whose products some processors get wrong
# What callers of the reference pass to from_pretrained; precision and device are the package's own here.
TORCH_OPTIONS = {
    "torch_dtype": "the precision was chosen at export (--fp32, --bf16, --int8, --int4)",
    "dtype": "the precision was chosen at export (--fp32, --bf16, --int8, --int4)",
    "attn_implementation": "onnxruntime's fused attention is always used",
    "device_map": "the device was chosen at export (--target cpu or cuda)",
    "low_cpu_mem_usage": "weights are always memory-mapped",
    "trust_remote_code": "no code of the checkpoint is ever run",
    "use_safetensors": "the package has its own weight files",
    "revision": "it is chosen at export (--revision)",
}


@dataclass(frozen=True)
class Skipped:
    """An input that was left out: its index in the list and what was wrong with it."""

    index: int
    error: Exception


@dataclass(frozen=True, eq=False)
class Package:
    """One open package."""

    folder: Path
    manifest: Manifest
    encoder: Encoder
    model: Model
    memory: MemoryPolicy


def open_package(
    folder: str | os.PathLike[str],
    task: Task,
    given: Mapping[str, object],
    providers: Sequence[str] | None,
    threads: int | None,
    memory: MemoryMode = "normal",
) -> Package:
    """Open a package for `task`; the vision encoder waits for the first picture. Raises PackageError, InputError.

    `given` maps fields of EncodeOptions to the caller's choices, None where the package's default holds.
    """
    path = Path(folder)
    manifest = Manifest.read(path)
    files = PackageFiles(path, manifest)
    require_task(path, manifest, task)
    chosen = chosen_threads(threads)
    available = require_providers(providers, manifest.target, path)
    policy = memory_policy(memory, manifest.matrices, TARGETS[manifest.target])
    encoder = open_encoder(path, manifest, given)
    if PER_TOKEN in manifest.matrices.values() and not stored_weights_are_exact():
        warn_caller(
            f"this processor multiplies int8 inexactly (x86 without VNNI), so {path} gives wrong vectors here; "
            f"make the portable package: python -m export --model {manifest.source.checkpoint} --int8 --portable"
        )
    open_graph = files.watched(policy.open_graph)
    model = Model(path, manifest, available, chosen, open_graph, policy.keep_vision)
    return Package(path, manifest, encoder, model, policy)


def require_task(folder: Path, manifest: Manifest, task: Task) -> None:
    """PackageError where the package of `folder` is for the other task."""
    if manifest.task != task:
        kind, right = {
            "embedding": ("an embedding", "Qwen3VLEmbedder or `python -m runtime embed`"),
            "reranker": ("a reranker", "Qwen3VLReranker or `python -m runtime rerank`"),
        }[manifest.task]
        raise PackageError(f"{folder} is {kind} package; open it with {right}.")


def open_encoder(folder: Path, manifest: Manifest, given: Mapping[str, object]) -> Encoder:
    """The part of a package that makes token sequences; no graph is opened. `given` as of `open_package`."""
    chosen = {name: value for name, value in given.items() if value is not None}
    options = EncodeOptions(**{**asdict(manifest.defaults), **chosen})
    return make_encoder(folder, manifest.vision, manifest.tokens, options)


def require_positive(name: str, value: object) -> int:
    """`value` as it is; InputError unless it is a positive whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}, expected a positive whole number.")
    return value


def chosen_threads(given: int | None) -> int:
    """`given`, or for None as many as this process may use; InputError for what is no sensible number of threads."""
    if given is None:
        return default_threads()
    if require_positive("threads", given) > MOST_THREADS:
        raise InputError(f"threads is {given}, expected at most {MOST_THREADS:,}; leave it out for all CPUs there are.")
    return given


def explain_torch_options(options: Mapping[str, object]) -> None:
    """Answer the reference's torch-only keywords with a warning; TypeError for a keyword nobody knows."""
    if unknown := [name for name in options if name not in TORCH_OPTIONS]:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
    for name in options:
        warn_caller(f"{name} has no effect here: {TORCH_OPTIONS[name]}.")


def require_on_error(on_error: str) -> None:
    """InputError unless it is one of the two policies."""
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error is {on_error!r}, expected 'raise' or 'skip'.")


def record_skips(skips: Sequence[Skipped], collected: list[Skipped] | None, among: str) -> None:
    """Hand the skipped items to the caller's list, or say in one warning what was lost of `among`."""
    if collected is not None:
        collected += skips
    elif skips:
        warn_caller(
            f"{len(skips)} {among} were left out (NaN in the result; pass skipped=[] to collect why), "
            f"the first: {skips[0].error}"
        )
