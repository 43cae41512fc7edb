"""The command line of the exporter: words and progress on stderr, the package's path on stdout."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from export.calibration import BUILTIN, NONE
from export.folder import require_free_output
from export.options import ExportOptions, Reporter
from export.package import export_package
from export.source import PUBLISHED, SMALL, find_checkpoint
from quant.agreement import require_cosine
from quant.kernels import KERNELS
from quant.selection import INT4_BLOCKS, UNQUANTISED
from runtime.commands.exit_code import exit_code
from runtime.commands.results import print_line
from runtime.errors import InputError
from runtime.version import VERSION

PACKAGES = Path("packages")
DESCRIPTION = """Make an ONNX package of a Qwen3-VL-Embedding or Qwen3-VL-Reranker checkpoint, for `runtime`.
No torch is needed; weights are streamed, so a checkpoint larger than memory is fine."""
EXAMPLES = """examples:
  python -m export --model tiny --int8
  python -m export --model Qwen3-VL-Embedding-2B
  python -m export --model ./models/Qwen3-VL-Reranker-2B --output reranker --verify
"""


def parser() -> argparse.ArgumentParser:
    """The options of `python -m export`."""
    parser = argparse.ArgumentParser(
        "python -m export", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--model",
        required=True,
        help="a checkpoint folder, a repository id such as Qwen/Qwen3-VL-Embedding-2B,\n"
        f"one of {', '.join(PUBLISHED)},\n"
        f"or {' or '.join(SMALL)}: a small trained embedder and reranker for a first try, which are here already",
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        "--fp32", dest="precision", action="store_const", const="fp32", help="float32 (default on cpu)"
    )
    precision.add_argument(
        "--bf16", dest="precision", action="store_const", const="bf16", help="bfloat16 (default on cuda, not on cpu)"
    )
    precision.add_argument("--int8", dest="precision", action="store_const", const="int8", help="int8: fast")
    precision.add_argument("--int4", dest="precision", action="store_const", const="int4", help="int4: small")
    parser.add_argument(
        "--portable",
        action="store_true",
        help="with --int8 or --int4: the form of other runtimes and of CUDA (MatMulNBits)",
    )
    parser.add_argument(
        "--block",
        type=int,
        choices=INT4_BLOCKS,
        help="with --int4: weights that share a scale (default 8, with --portable or on cuda 32)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="DIR",
        help="samples for --int8 and --int4: a folder of .txt, .md, .png, .jpg, .webp and .jsonl files,\n"
        f"{BUILTIN} (default: texts in twelve languages and drawn pictures) or {NONE}",
    )
    parser.add_argument(
        "--golden",
        default=BUILTIN,
        choices=(BUILTIN, NONE),
        help="inputs whose results are kept in the package for `python -m runtime verify`\n"
        f"(default: {BUILTIN}; {NONE} saves a pass through the float model)",
    )
    parser.add_argument(
        "--min-cosine",
        type=float,
        metavar="C",
        help="refuse a package whose mean cosine to float32 (of a reranker: correlation of the logits) is below C",
    )
    parser.add_argument(
        "--target",
        choices=tuple(KERNELS),
        default="cpu",
        help="where the package will run: cpu (default) or cuda (there activations are bfloat16)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"package folder (default: {PACKAGES}/<name>-<precision>, with -cuda at the end for that target)",
    )
    parser.add_argument(
        "--task", choices=("embedding", "reranker"), help="default: decided by the checkpoint's own files"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a repository")
    parser.add_argument("--force", action="store_true", help="replace an existing package")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare with the torch reference afterwards (needs the extra `reference`);\nexit code 1 if a stage fails",
    )
    parser.add_argument("--version", action="version", version=f"qwen3vl-edge {VERSION}")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 for a failed verification, 2 for an error."""
    options = parser().parse_args(arguments)
    return exit_code(lambda: _run(options), "; nothing was left behind")


def _run(options: argparse.Namespace) -> int:
    precision = _precision(options)
    if options.verify:
        # Imported here: only a verification needs torch. A missing extra is better known before the export than after.
        from export.reference import prepare_reference_imports

        prepare_reference_imports()
    name = package_name(options.model)
    output: Path = options.output or PACKAGES / f"{name}-{precision}{'' if options.target == 'cpu' else '-cuda'}"
    require_free_output(output, options.force)
    folder = find_checkpoint(options.model, revision=options.revision)
    choices = ExportOptions(
        name,
        precision,
        options.target,
        options.task,
        options.revision,
        options.force,
        options.calibrate or BUILTIN,
        options.block,
        options.min_cosine,
        options.golden,
    )
    with tqdm(unit_scale=True, disable=None) as progress:

        def start(total: int, name: str, unit: str) -> None:
            progress.desc, progress.unit = f"{name}: ", unit
            progress.reset(total)

        reporter = Reporter(lambda text: progress.write(text, file=sys.stderr), start, progress.update)
        export_package(folder, output, choices, reporter)
    passed = _verified(folder, output) if options.verify else True
    print_line(str(output))
    return 0 if passed else 1


def _precision(options: argparse.Namespace) -> str:
    """The name of the precision; InputError for options that do not go together."""
    known = KERNELS[options.target].precisions
    precision: str = options.precision or known[0]
    if options.portable and precision not in ("int8", "int4"):
        raise InputError("--portable is a form of --int8 and --int4; add one of them or leave it out.")
    if options.block and precision != "int4":
        raise InputError("--block belongs to --int4; add --int4 or leave it out.")
    if options.block == INT4_BLOCKS[0] and (options.portable or options.target != "cpu"):
        raise InputError(
            f"--block {INT4_BLOCKS[0]} is for --int4 on the CPU; with --portable or on cuda take 16 or more."
        )
    precision = f"{precision}-portable" if options.portable else precision
    if precision not in known:
        other = next(target for target, kernels in KERNELS.items() if precision in kernels.precisions)
        *most, last = map(_flag, known)
        raise InputError(
            f"{_flag(precision)} is for --target {other}; --target {options.target} takes {', '.join(most)} or {last}."
        )
    if options.calibrate and precision in UNQUANTISED:
        raise InputError("--calibrate is for quantised precisions; add --int8 or --int4, or leave it out.")
    if options.min_cosine is not None:
        require_cosine(options.min_cosine)
    if options.verify and precision != "fp32":
        raise InputError(
            f"--verify compares float32 packages with torch; leave it out of {_flag(precision)}, "
            "or export with --fp32 --target cpu."
        )
    return precision


def _flag(precision: str) -> str:
    return "--" + precision.replace("-", " --")


def package_name(model: str) -> str:
    """The last part of a folder or repository id; a published name in its published spelling."""
    name = Path(model).expanduser().resolve().name if Path(model).expanduser().is_dir() else model.rsplit("/", 1)[-1]
    published = {known.lower(): known for known in PUBLISHED}
    return published.get(name.lower(), name)


def _verified(folder: Path, output: Path) -> bool:
    from export.verify import format_table, verify_package

    differences = verify_package(folder, output, lambda text: print(text, file=sys.stderr))
    print(format_table(differences), file=sys.stderr)
    passed = all(difference.passed for difference in differences)
    if not passed:
        print(f"{output} does not reproduce the reference; do not use it and report the table.", file=sys.stderr)
    return passed
