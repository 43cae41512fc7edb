"""The files of a package, written stage after stage into a folder."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from export.blocks import Parts
from export.blueprint import Blueprint
from export.calibration import NONE, Calibration, Results, calibrate, measure
from export.checkpoint import Checkpoint
from export.decoder import build_decoder
from export.folds import make_plan
from export.golden import golden_samples, make_golden
from export.graph import Graph
from export.layer_graphs import LayerGraphs
from export.layerwise import Sample, num_steps
from export.options import ExportOptions, Reporter
from export.vision import build_vision
from quant.agreement import FEWEST_LOGITS
from quant.losses import costliest
from quant.selection import Plan
from runtime.errors import CheckpointError, InputError
from runtime.golden import FLOAT
from runtime.manifest import (
    DECODER,
    DECODER_UINT8,
    FORMAT_VERSION,
    GOLDEN,
    TOKENIZER,
    VISION,
    VISION_UINT8,
    Loss,
    Manifest,
    Source,
    describe_file,
)
from runtime.version import VERSION


@dataclass(frozen=True, eq=False)
class Contents:
    """What stands in a package, written into an empty `folder`."""

    checkpoint: Checkpoint
    blueprint: Blueprint
    options: ExportOptions
    reporter: Reporter
    folder: Path

    def write(self) -> Manifest:
        """Stage after stage: float32 on the samples, the plan it leads to, the files, what these give for the same."""
        golden = golden_samples(self.blueprint) if self.options.golden != NONE else ()
        calibration = self._calibration(golden) if self.options.is_calibrated else None
        exact = calibration.results if calibration else self._golden_in_float32(golden)
        plan = self._plan(calibration)
        graphs, matrices = build_graphs(self.checkpoint, self.blueprint, plan)
        names = self._write_graphs(graphs, plan)
        package = replace(self._float32, plan=plan.in_float32(), written={graph.name: graph for graph in graphs})
        found = self._given(package, calibration, golden)
        loss = _loss(calibration, found, self.options, self.reporter.say) if calibration and found else None
        if golden:
            names.append(self._write_golden(exact or found, found))
        manifest = self._manifest(matrices, names, calibration, loss)
        manifest.write(self.folder)
        return manifest

    @property
    def _float32(self) -> LayerGraphs:
        return LayerGraphs(self.checkpoint, self.blueprint.config, self.folder)

    @property
    def _runs_here(self) -> bool:
        return self.options.target == "cpu"

    def _start(self, stage: str) -> None:
        self.reporter.start(num_steps(self.blueprint.config), stage, "layer")

    def _calibration(self, golden: Sequence[Sample]) -> Calibration:
        """Raises InputError for samples that are too few for `min_cosine`."""
        self._start("calibration")
        source = self.options.calibrate
        calibration = calibrate(self.blueprint, self._float32, source, golden, self.reporter.advance)
        if self.options.min_cosine is not None and calibration.results.is_too_few:
            raise InputError(
                f"--min-cosine compares a reranker's logits over all samples, and {source} has "
                f"{calibration.record.samples}; give {FEWEST_LOGITS} or more, or leave it out."
            )
        return calibration

    def _golden_in_float32(self, golden: Sequence[Sample]) -> Results | None:
        """None where nothing is golden, or the package itself is in float32."""
        if not golden or self.options.precision == FLOAT:
            return None
        self._start("golden inputs in float32")
        return measure(self.blueprint, self._float32, golden, self.reporter.advance)

    def _plan(self, calibration: Calibration | None) -> Plan:
        if calibration is None:
            return self.options.plan
        self.reporter.say("choosing scales")
        return make_plan(self.options.plan, self.checkpoint, self.blueprint.config, calibration.statistics)

    def _write_graphs(self, graphs: Sequence[Graph], plan: Plan) -> list[str]:
        """The names of all files that running a package needs."""
        self.reporter.start(sum(graph.data_bytes for graph in graphs), "weights", "B")
        for graph in graphs:
            graph.write(self.folder, self.reporter.advance)
        names = [name for graph in graphs for name in (graph.name, graph.data_name)]
        for variant in self._variants(graphs, replace(plan, to_uint8=True)):
            variant.write_model(self.folder)
            names.append(variant.name)
        shutil.copyfile(self.blueprint.folder / TOKENIZER, self.folder / TOKENIZER)
        return [*names, TOKENIZER]

    def _variants(self, graphs: Sequence[Graph], plan: Plan) -> Iterator[Graph]:
        """The graphs over the same weights for processors that saturate int8 products."""
        decoder, vision = graphs
        if plan.two_level:
            parts = Parts(Graph(DECODER_UINT8, lender=decoder), self.checkpoint, plan)
            add_decoder(parts, self.blueprint)
            yield parts.graph
        if plan.per_token:
            parts = Parts(Graph(VISION_UINT8, lender=vision), self.checkpoint, plan)
            yield build_vision(parts, self.blueprint.config.vision)

    def _given(self, package: LayerGraphs, calibration: Calibration | None, golden: Sequence[Sample]) -> Results | None:
        """What the package gives for the samples, and for the golden inputs where it is for this machine."""
        if not calibration and not (golden and self._runs_here):
            return None
        self._start("measuring the loss" if calibration else "golden inputs")
        samples = calibration.samples if calibration else ()
        return measure(self.blueprint, package, [*samples, *golden], self.reporter.advance)

    def _write_golden(self, exact: Results | None, found: Results | None) -> str:
        assert exact is not None, "a golden output is that of float32, of the package or of both"
        own = found.golden if found and self._runs_here else None
        make_golden(self.blueprint.task, exact.golden, own).write(self.folder)
        return GOLDEN

    def _manifest(
        self, matrices: dict[str, str], names: Sequence[str], calibration: Calibration | None, loss: Loss | None
    ) -> Manifest:
        self.reporter.say("hashing checkpoint and package")
        blueprint, options = self.blueprint, self.options
        return Manifest(
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
            source=Source(options.name, options.revision, self.checkpoint.fingerprint()),
            files=tuple(describe_file(self.folder / name) for name in names),
            calibration=calibration.record if calibration else None,
            loss=loss,
            golden=options.golden,
        ).sealed()


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
