"""onnxruntime sessions: threads, providers, and the checks that turn a bad installation into a sentence."""

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path

import onnxruntime as ort

from runtime.errors import InputError, OutOfMemoryError, PackageError
from runtime.graphs.allocation import allocating
from runtime.graphs.probe import let_weights_become_uint8, products_saturate
from runtime.graphs.target import TARGETS, Target

CPU = TARGETS["cpu"].provider
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
CGROUP = Path("/sys/fs/cgroup")
PROVIDER_OPTIONS = {
    TARGETS["cuda"].provider: {
        # Flash, memory-efficient and plain attention. Left to itself onnxruntime takes cuDNN's from Hopper on, which
        # is built anew for every batch size and length, and kept for good.
        "sdpa_kernel": "19",
        "use_tf32": "0",  # the heads are float32
    }
}
# The graph is final: what the extended level adds beside uint8 weights is slower here, and load time.
UNWANTED_OPTIMIZERS = [
    "AttentionFusion",
    "BiasGeluFusion",
    "BiasSoftmaxFusion",
    "ConstantFolding",  # would unpack 4-bit weights
    "ConvActivationFusion",
    "DynamicQuantizeMatMulFusion",
    "EmbedLayerNormFusion",
    "FastGeluFusion",
    "GatherSliceToSplitFusion",
    "GatherToSliceFusion",
    "GatherToSplitFusion",
    "GeluFusionL2",
    "GemmActivationFusion",
    "LayerNormFusionL2",
    "MatMulIntegerToFloatFusion",
    "MatMulNBitsFusion",
    "MatMulScaleFusion",
    "MatmulTransposeFusion",
    "QDQFinalCleanupTransformer",
    "QDQS8ToU8Transformer",
    "QDQSelectorActionTransformer",
    "QuickGeluFusion",
    "SimplifiedLayerNormFusion",
    "SkipLayerNormFusion",
]


def open_session(path: Path, providers: Sequence[str], threads: int, prepack: bool = True) -> ort.InferenceSession:
    """Open a package's graph; `providers` as from `require_providers`. Raises PackageError, OutOfMemoryError."""
    try:
        with allocating():
            return create_session(str(path), session_options(threads, prepack), providers)
    except MemoryError as error:
        raise OutOfMemoryError(
            f"there is not enough memory to open {path}; close other programs, or pass memory='low'."
        ) from error
    except Exception as error:  # onnxruntime's errors share no narrower base
        remedy = (
            "" if providers[0] == CPU else f"; {providers[0]} needs a driver and libraries that fit this onnxruntime"
        )
        raise PackageError(f"{path} cannot be opened by onnxruntime {ort.__version__} ({error}){remedy}.") from error


def create_session(
    model: str | bytes, options: ort.SessionOptions, providers: Sequence[str] = (CPU,)
) -> ort.InferenceSession:
    """A session whose products with stored weights are exact on every processor; of a path or of a model's bytes.

    Left to itself onnxruntime stores int8 weights as uint8 on all of x86, although only x86 without VNNI needs it.
    Graphs for other providers have no such product.
    """
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if providers[0] != CPU:
        with redirect_stdout(sys.stderr):  # it prints, and stdout is for results
            ort.preload_dlls()  # of the nvidia wheels, which are not on the system's path
    elif products_saturate():
        let_weights_become_uint8(options)
    # Without the fallback, which would take the CPU for a provider that cannot start and say so on stdout.
    return ort.InferenceSession(
        model,
        options,
        providers=[(name, PROVIDER_OPTIONS.get(name, {})) for name in providers],
        disabled_optimizers=UNWANTED_OPTIMIZERS,
        enable_fallback=0,
    )


def session_options(threads: int, prepack: bool = True) -> ort.SessionOptions:
    """The options of every session; `prepack` as in `runtime.graphs.memory.GraphMemory`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # In the order of the graph: the default order unpacks all 4-bit weights before it uses the first.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    # Both hold on to buffers that exact lifetimes give back: the vision encoder's peak falls by two fifths.
    options.enable_mem_pattern = False
    options.enable_mem_reuse = False
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    # Two sessions take turns on the same cores: idle workers must not spin.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def require_providers(providers: Sequence[str] | None, target: str, package: Path) -> list[str]:
    """The execution providers to use, by default the one the package was made for.

    Raises PackageError for a provider the package was not made for or onnxruntime does not have, and for an
    installation that cannot work; InputError for providers that are no list.
    """
    if target not in TARGETS:
        raise PackageError(f"{package} was made for the target {target!r}, known targets are cpu and cuda.")
    require_usable_onnxruntime(TARGETS[target])
    made_for = TARGETS[target].provider
    if isinstance(providers, str) or (providers is not None and not providers):
        raise InputError(f"providers is {providers!r}, expected a list such as ['{made_for}'].")
    chosen = [made_for] if providers is None else list(providers)
    for place, provider in enumerate(chosen):
        if provider != made_for and (place == 0 or provider != CPU):  # what a graph's provider lacks is left to the CPU
            wanted = next((name for name, known in TARGETS.items() if known.provider == provider), None)
            remedy = f"export it with --target {wanted}" if wanted else f"pass providers=['{made_for}']"
            raise PackageError(f"{package} was made for {made_for}, not for {provider}; {remedy}.")
    missing = [provider for provider in chosen if provider not in ort.get_available_providers()]
    if missing:
        available = ", ".join(ort.get_available_providers())
        raise PackageError(
            f"{package} needs {', '.join(missing)}, onnxruntime here has {available}; "
            "install the onnxruntime distribution that has it, or export the package with --target cpu."
        )
    return chosen


def require_usable_onnxruntime(target: Target) -> None:
    """Refuse two onnxruntime distributions over each other, and one that lacks the operators of a target's graphs."""
    installed = [name for name in DISTRIBUTIONS if _is_installed(name)]
    if len(installed) > 1:
        raise PackageError(
            f"{' and '.join(installed)} are installed over each other and share one folder; keep one: "
            f"pip uninstall -y {' '.join(installed)}, then install the one you want."
        )
    version = tuple(int(part) for part in ort.__version__.split(".")[:2])
    if version < target.minimum_version:
        needed = f"{target.distribution}>={'.'.join(map(str, target.minimum_version))}"
        raise PackageError(f'onnxruntime {ort.__version__} lacks operators of these packages; pip install "{needed}".')


def default_threads() -> int:
    """As many threads as this process may use: its CPU affinity, cut by the container's quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cpus()
    return max(1, min(affinity, quota) if quota else affinity)


def _cgroup_cpus() -> int | None:
    """Whole CPUs of the cgroup's quota, rounded up; None without a quota."""
    for quota_file, period_file in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = (CGROUP / quota_file).read_text().split()
            if period_file:
                words += (CGROUP / period_file).read_text().split()
        except OSError:
            continue
        if len(words) == 2 and words[0] not in ("max", "-1"):
            return max(1, -(-int(words[0]) // int(words[1])))
    return None


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
