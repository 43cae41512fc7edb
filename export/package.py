"""A checkpoint folder in, a package folder out: written to a temporary sibling, renamed when whole."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from export.blocks import Parts
from export.checkpoint import Checkpoint
from export.config import ModelConfig, read_config
from export.decoder import build_decoder
from export.graph import Graph
from export.heads import EmbeddingHead, Head, YesNoHead
from export.tokenizer import TokenizerFacts, decide_task, read_tokenizer
from export.vision import build_vision
from quant.selection import Plan
from runtime.errors import CheckpointError
from runtime.manifest import (
    DECODER,
    FORMAT_VERSION,
    MANIFEST_NAME,
    TOKENIZER,
    VISION,
    Defaults,
    Manifest,
    Source,
    Task,
    describe_file,
)
from runtime.version import VERSION

# What the two reference classes default to: tokens, pixels (32 × 32 a visual token), frames a second, frames.
TOKEN_PIXELS = 32 * 32
DEFAULTS: dict[Task, Defaults] = {
    "embedding": Defaults(
        max_length=8192,
        min_pixels=4 * TOKEN_PIXELS,
        max_pixels=1800 * TOKEN_PIXELS,
        total_pixels=7680 * TOKEN_PIXELS,
        fps=1.0,
        max_frames=64,
        default_instruction="Represent the user's input.",
    ),
    "reranker": Defaults(
        max_length=10240,
        min_pixels=4 * TOKEN_PIXELS,
        max_pixels=1800 * TOKEN_PIXELS,
        total_pixels=7680 * TOKEN_PIXELS,
        fps=1.0,
        max_frames=64,
        default_instruction="Given a search query, retrieve relevant candidates that answer the query.",
    ),
}
# Model files, tokenizer and manifest beside the weights.
SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ExportOptions:
    """What a package is called and made for; `task` None lets the checkpoint's own files decide."""

    name: str
    precision: str = "fp32"
    target: str = "cpu"
    task: Task | None = None
    revision: str | None = None
    force: bool = False


@dataclass(frozen=True)
class Reporter:
    """Where an export says what it does: `say` gets sentences, `start` the bytes to come, `advance` bytes done."""

    say: Callable[[str], object]
    start: Callable[[int], object]
    advance: Callable[[int], object]


SILENT = Reporter(lambda text: None, lambda total: None, lambda count: None)


def export_package(folder: Path, output: Path, options: ExportOptions, reporter: Reporter = SILENT) -> Manifest:
    """Write the package of the checkpoint in `folder` to `output`. Raises CheckpointError; leaves nothing half."""
    require_free_output(output, options.force)
    config = read_config(folder)
    facts = read_tokenizer(folder, config)
    task = options.task or _decided_task(folder, facts, reporter)
    with Checkpoint(folder) as checkpoint:
        graphs, matrices = build_graphs(checkpoint, config, _head(task, config, facts), Plan(options.precision))
        checkpoint.require_all_used()
        total = sum(graph.data_bytes for graph in graphs)
        with _partial_folder(output, total) as partial:
            reporter.start(total)
            for graph in graphs:
                graph.write(partial, reporter.advance)
            shutil.copyfile(folder / TOKENIZER, partial / TOKENIZER)
            reporter.say("hashing checkpoint and package")
            names = [name for graph in graphs for name in (graph.name, graph.data_name)]
            manifest = Manifest(
                format_version=FORMAT_VERSION,
                generator=f"qwen3vl-edge {VERSION}",
                name=options.name,
                task=task,
                precision=options.precision,
                target=options.target,
                text=config.text,
                vision=config.vision,
                tokens=facts.tokens,
                defaults=DEFAULTS[task],
                matrices=matrices,
                source=Source(options.name, options.revision, checkpoint.fingerprint()),
                files=tuple(describe_file(partial / name) for name in [*names, TOKENIZER]),
            ).sealed()
            manifest.write(partial)
            require_free_output(output, options.force)  # it may have appeared meanwhile
            _put_in_place(partial, output)
    return manifest


def build_graphs(
    checkpoint: Checkpoint, config: ModelConfig, head: Head, plan: Plan
) -> tuple[list[Graph], dict[str, str]]:
    """Decoder and vision graph with every weight declared, and the scheme of each matrix. Writes nothing."""
    decoder = Parts(Graph(DECODER), checkpoint, plan)
    vision = Parts(Graph(VISION), checkpoint, plan)
    build_decoder(decoder, config.text, len(config.vision.deepstack_visual_indexes), head)
    build_vision(vision, config.vision)
    return [decoder.graph, vision.graph], {**decoder.matrices, **vision.matrices}


def require_free_output(output: Path, force: bool) -> None:
    """CheckpointError where `output` exists and must not, or is something other than a package."""
    if not output.exists():
        return
    if not (output / MANIFEST_NAME).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise CheckpointError(f"{output} exists and is not a package; choose another --output.")
    if not force:
        raise CheckpointError(f"{output} exists already; pass --force to replace it or choose another --output.")


def _decided_task(folder: Path, facts: TokenizerFacts, reporter: Reporter) -> Task:
    decision = decide_task(folder, facts)
    reporter.say(f"task: {decision.task} ({decision.reason})")
    return decision.task


def _head(task: Task, config: ModelConfig, facts: TokenizerFacts) -> Head:
    if task == "embedding":
        return EmbeddingHead(config.text.hidden_size)
    return YesNoHead(config.text, facts.yes, facts.no, config.tie_word_embeddings)


@contextmanager
def _partial_folder(output: Path, data_bytes: int) -> Iterator[Path]:
    """A hidden sibling of `output` to write into; what a killed export left there is removed first.

    Raises CheckpointError for a full disk, a folder that cannot be written and a second export to the same place.
    """
    partial = output.with_name(f".{output.name}.partial")
    lock = FileLock(output.with_name(f".{output.name}.lock"))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with lock.acquire(timeout=0):
            try:
                shutil.rmtree(partial, ignore_errors=True)
                _require_space(output.parent, data_bytes + SPARE_BYTES)
                partial.mkdir()
                yield partial
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                with suppress(PermissionError):  # Windows deletes no open file; filelock itself does it there
                    Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout:
        raise CheckpointError(f"another export is writing {output}; wait for it or choose another --output.") from None
    except OSError as error:
        raise CheckpointError(f"{output} cannot be written ({error}); nothing was left behind.") from error


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder} has {free / 1e9:.1f} GB free and the package needs {needed / 1e9:.1f} GB; "
            "free some space or choose another --output."
        )


def _put_in_place(partial: Path, output: Path) -> None:
    """Rename into place; a package that is replaced goes only after the new one is there."""
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    replaces = output.exists()
    if replaces:
        output.rename(old)
    try:
        partial.rename(output)
    except OSError:
        if replaces:
            old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)
