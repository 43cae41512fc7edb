"""The packages that bench.evidence compares: the small embedder in every precision, with and without outliers, and
the small reranker."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from export.config import read_config
from export.options import ExportOptions
from export.package import export_package
from export.source import find_checkpoint

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from checkpoint_shapes import Shape, TextShape, VisionShape
from outliers import WEIGHTS, write_outliers


@dataclass(frozen=True)
class Form:
    """A line of a table: what is exported, and whether outlier channels are put in before."""

    name: str
    precision: str
    block: int | None = None
    outliers: bool = False
    calibrate: str = "builtin"
    model: str = "tiny"


FORMS = (
    Form("`--fp32`", "fp32"),
    Form("`--int8`", "int8"),
    Form("`--int8 --portable`", "int8-portable"),
    Form("`--int4`, block 8", "int4"),
    Form("`--int4 --block 32`", "int4", 32),
    Form("`--int4 --block 128`", "int4", 128),
    Form("`--int4 --portable`, block 32", "int4-portable"),
    Form("`--int4 --portable --block 128`", "int4-portable", 128),
    Form("`--int8`, outliers put in", "int8", outliers=True),
    Form("`--int4 --block 32`, outliers put in", "int4", 32, outliers=True),
    Form("`--int4 --block 32`, outliers, `--calibrate none`", "int4", 32, True, "none"),
)
RERANKER_FORMS = tuple(Form(f"`--{each}`", each, model="tiny-reranker") for each in ("fp32", "int8", "int4"))


def export_form(form: Form, folder: Path) -> Path:
    """The package of a form, made in `folder` unless it is there."""
    words = [form.model, form.precision, str(form.block), "outliers" if form.outliers else "plain", form.calibrate]
    package = folder / "-".join(words)
    if not package.exists():
        checkpoint = find_checkpoint(form.model)
        if form.outliers:
            checkpoint = with_outliers(checkpoint, folder / "outliers")
        options = ExportOptions(form.model, form.precision, block=form.block, golden="none")
        export_package(checkpoint, package, replace(options, calibrate=form.calibrate))
    return package


def with_outliers(checkpoint: Path, folder: Path) -> Path:
    """A float32 copy of a checkpoint with outlier channels that leave its function as it is."""
    if not folder.exists():
        plain = folder.with_name(f"{folder.name}-float32")
        plain.mkdir(parents=True)
        for path in checkpoint.rglob("*"):
            if path.is_file() and path.name != WEIGHTS:
                copy = plain / path.relative_to(checkpoint)
                copy.parent.mkdir(exist_ok=True)
                copy.write_bytes(path.read_bytes())
        tensors = load_file(checkpoint / WEIGHTS)
        save_file({name: values.astype(np.float32) for name, values in tensors.items()}, plain / WEIGHTS)
        write_outliers(plain, folder, _shape(checkpoint))
    return folder


def _shape(checkpoint: Path) -> Shape:
    config = read_config(checkpoint)
    text = {name: getattr(config.text, name) for name in TextShape.__dataclass_fields__}
    vision = {name: getattr(config.vision, name) for name in VisionShape.__dataclass_fields__}
    return Shape(TextShape(**text), VisionShape(**vision), config.tie_word_embeddings)
