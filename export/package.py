"""A checkpoint folder in, a package folder out."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from export.blocks import Parts
from export.blueprint import Blueprint, read_blueprint
from export.calibration import BUILTIN, NONE, Calibration, Results, calibrate, measure
from export.checkpoint import Checkpoint
from export.decoder import build_decoder
from export.folder import partial_folder, put_in_place, require_free_output
from export.folds import make_plan
from export.golden import golden_samples, make_golden
from export.graph import Graph
from export.layer_graphs import LayerGraphs
from export.layerwise import num_steps
from export.vision import build_vision
from quant.agreement import FEWEST_LOGITS
from quant.kernels import KERNELS
from quant.losses import costliest
from quant.selection import UNQUANTISED, Plan
from runtime.errors import CheckpointError, InputError
from runtime.golden import FLOAT
from runtime.manifest import (
    DECODER,
    DECODER_UINT8,
    FORMAT_VERSION,
    GOLDEN,
    TOKENIZER,
    VISION,
    Loss,
    Manifest,
    Source,
    Task,
    describe_file,
)
from runtime.version import VERSION


@dataclass(frozen=True)
class ExportOptions:
    """What a package is called and made for; `task` None lets the checkpoint's own files decide.

    `precision` is one that quant/kernels.py lists for the `target`.
    `calibrate`: BUILTIN, NONE or a folder of samples, for the quantised precisions; `min_cosine` refuses a package
    whose mean cosine to float32 on these samples is lower. `golden`: BUILTIN, or NONE for a package without golden
    inputs.
    """

    name: str
    precision: str = "fp32"
    target: str = "cpu"
    task: Task | None = None
    revision: str | None = None
    force: bool = False
    calibrate: str = BUILTIN
    block: int | None = None
    min_cosine: float | None = None
    golden: str = BUILTIN


@dataclass(frozen=True)
class Reporter:
    """Where an export says what it does: `say` gets sentences, `start` a stage (total, name, unit), `advance` steps."""

    say: Callable[[str], object]
    start: Callable[[int, str, str], object]
    advance: Callable[[int], object]


SILENT = Reporter(lambda text: None, lambda total, name, unit: None, lambda count: None)


def export_package(folder: Path, output: Path, options: ExportOptions, reporter: Reporter = SILENT) -> Manifest:
    """Write the package of the checkpoint in `folder` to `output`; nothing half is left.

    Raises CheckpointError, and InputError for samples that cannot be used.
    """
    # "." has no name for a sibling, and a link is not what is replaced.
    output = output.resolve() if output.is_symlink() else output.absolute()
    require_free_output(output, options.force)
    blueprint = read_blueprint(folder, options.task, reporter.say)
    calibrated = options.precision not in UNQUANTISED and options.calibrate != NONE
    if options.min_cosine is not None and not calibrated:
        raise CheckpointError("--min-cosine needs a quantised precision and calibration samples to compare on.")
    with Checkpoint(folder) as checkpoint:
        plan = Plan(options.precision, options.block, KERNELS[options.target])
        graphs, matrices = build_graphs(checkpoint, blueprint, plan)
        checkpoint.require_all_used()
        for name, reason in checkpoint.ignored.items():
            reporter.say(f"left out: {name} ({reason})")
        total = sum(graph.data_bytes for graph in graphs)
        with partial_folder(output, total) as partial:
            require_free_output(output, options.force)  # a package may have been taken back
            golden = golden_samples(blueprint) if options.golden != NONE else ()
            float32 = LayerGraphs(checkpoint, blueprint.config, partial)
            layers = num_steps(blueprint.config)
            calibration, exact = None, None
            if calibrated:
                reporter.start(layers, "calibration", "layer")
                calibration = calibrate(blueprint, float32, options.calibrate, golden, reporter.advance)
                exact = calibration.results
                if options.min_cosine is not None and calibration.results.is_too_few:
                    raise InputError(
                        f"--min-cosine compares a reranker's logits over all samples, and {options.calibrate} has "
                        f"{calibration.record.samples}; give {FEWEST_LOGITS} or more, or leave it out."
                    )
                reporter.say("choosing scales")
                plan = make_plan(plan, checkpoint, blueprint.config, calibration.statistics)
                graphs, matrices = build_graphs(checkpoint, blueprint, plan)
            elif golden and options.precision != FLOAT:
                reporter.start(layers, "golden inputs in float32", "layer")
                exact = measure(blueprint, float32, golden, reporter.advance)
            reporter.start(sum(graph.data_bytes for graph in graphs), "weights", "B")
            for graph in graphs:
                graph.write(partial, reporter.advance)
            shutil.copyfile(folder / TOKENIZER, partial / TOKENIZER)
            reporter.say("hashing checkpoint and package")
            names = [name for graph in graphs for name in (graph.name, graph.data_name)]
            if plan.two_level:
                variant = Graph(DECODER_UINT8, lender=graphs[0])
                add_decoder(Parts(variant, checkpoint, replace(plan, to_uint8=True)), blueprint)
                variant.write_model(partial)
                names.append(variant.name)
            manifest = Manifest(
                format_version=FORMAT_VERSION,
                generator=f"qwen3vl-edge {VERSION}",
                name=options.name,
                task=blueprint.task,
                precision=options.precision,
                target=options.target,
                text=blueprint.config.text,
                vision=blueprint.config.vision,
                tokens=blueprint.tokenizer.tokens,
                defaults=blueprint.defaults,
                matrices=matrices,
                source=Source(options.name, options.revision, checkpoint.fingerprint()),
                files=tuple(describe_file(partial / name) for name in [*names, TOKENIZER]),
                calibration=calibration.record if calibration else None,
            )
            written = {graph.name: graph for graph in graphs}
            package = LayerGraphs(checkpoint, blueprint.config, partial, plan.in_float32(), written)
            here = options.target == "cpu"
            found = None
            if calibration or (golden and here):
                samples = calibration.samples if calibration else ()
                reporter.start(layers, "measuring the loss" if calibration else "golden inputs", "layer")
                found = measure(blueprint, package, [*samples, *golden], reporter.advance)
            if calibration and found:
                manifest = replace(manifest, loss=_loss(calibration, found, options, reporter.say))
            if golden:
                expected = exact or found
                assert expected is not None, "a golden output is that of float32, of the package or of both"
                own = found.golden if found and here else None
                make_golden(blueprint.task, expected.golden, own).write(partial)
                files = (*manifest.files, describe_file(partial / GOLDEN))
                manifest = replace(manifest, files=files, golden=options.golden)
            manifest = manifest.sealed()
            manifest.write(partial)
            require_free_output(output, options.force)  # it may have appeared meanwhile
            put_in_place(partial, output)
    return manifest


def build_graphs(checkpoint: Checkpoint, blueprint: Blueprint, plan: Plan) -> tuple[list[Graph], dict[str, str]]:
    """Decoder and vision graph with every weight declared, and the scheme of each matrix. Writes nothing."""
    decoder = Parts(Graph(DECODER), checkpoint, plan)
    vision = Parts(Graph(VISION), checkpoint, plan)
    add_decoder(decoder, blueprint)
    build_vision(vision, blueprint.config.vision)
    return [decoder.graph, vision.graph], {**decoder.matrices, **vision.matrices}


def add_decoder(parts: Parts, blueprint: Blueprint) -> None:
    """The checkpoint's decoder with its head, into `parts.graph`."""
    config = blueprint.config
    build_decoder(parts, config.text, len(config.vision.deepstack_visual_indexes), blueprint.head)


def _loss(calibration: Calibration, found: Results, options: ExportOptions, say: Callable[[str], object]) -> Loss:
    """How far the package's results are from float32. Raises CheckpointError below `min_cosine`."""
    agreement = calibration.results.agreement(found)
    loss = Loss(
        agreement.cosine_mean,
        agreement.cosine_minimum,
        agreement.overlap,
        agreement.kendall,
        agreement.largest,
    )
    activations = "" if options.target == "cpu" else "weights as stored, activations in float32; "
    is_vectors = calibration.results.pooled.ndim == 2
    cosine = f"cosine {loss.cosine_mean:.5f} mean, {loss.cosine_minimum:.5f} lowest"
    correlation = f"correlation of the logits {loss.cosine_mean:.5f}"
    say(
        f"{activations}against float32 on {agreement.count} samples: {cosine if is_vectors else correlation}; "
        f"order of pairs (Kendall) {loss.kendall:.4f}"
    )
    if options.min_cosine is not None and not loss.cosine_mean >= options.min_cosine:
        raise CheckpointError(
            f"{options.name} in {options.precision} reaches a "
            f"{'mean cosine' if is_vectors else 'correlation of the logits'} of {loss.cosine_mean:.5f} to float32, "
            f"below --min-cosine {options.min_cosine}, and these layers cost most: "
            f"{costliest(calibration.results.layer_losses(found))}; "
            "choose another precision or samples nearer to your use."
        )
    return loss
