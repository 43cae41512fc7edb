"""A checkpoint folder in, a package folder out."""

from pathlib import Path

from export.blueprint import read_blueprint
from export.checkpoint import Checkpoint
from export.contents import Contents, build_graphs
from export.folder import partial_folder, put_in_place, require_free_output
from export.options import SILENT, ExportOptions, Reporter
from runtime.errors import CheckpointError
from runtime.manifest import Manifest


def export_package(folder: Path, output: Path, options: ExportOptions, reporter: Reporter = SILENT) -> Manifest:
    """Write the package of the checkpoint in `folder` to `output`; nothing half is left.

    Raises CheckpointError, and InputError for samples that cannot be used.
    """
    # "." has no name for a sibling, and a link is not what is replaced; Windows' junctions are none to is_symlink.
    leads_elsewhere = output.resolve() != output.parent.resolve() / output.name
    output = output.resolve() if leads_elsewhere else output.absolute()
    require_free_output(output, options.force)
    blueprint = read_blueprint(folder, options.task, reporter.say)
    if options.min_cosine is not None and not options.is_calibrated:
        raise CheckpointError("--min-cosine needs a quantised precision and calibration samples to compare on.")
    with Checkpoint(folder) as checkpoint:
        graphs, _ = build_graphs(checkpoint, blueprint, options.plan)
        checkpoint.require_all_used()
        for name, reason in checkpoint.ignored.items():
            reporter.say(f"left out: {name} ({reason})")
        with partial_folder(output, sum(graph.data_bytes for graph in graphs)) as partial:
            require_free_output(output, options.force)  # a package may have been taken back
            manifest = Contents(checkpoint, blueprint, options, reporter, partial).write()
            require_free_output(output, options.force)  # it may have appeared meanwhile
            put_in_place(partial, output)
    return manifest
