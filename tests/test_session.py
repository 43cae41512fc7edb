"""onnxruntime sessions: threads, providers, and installations that cannot work."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape

from runtime.errors import InputError, PackageError
from runtime.graphs import session
from runtime.graphs.session import default_threads, open_session, require_providers, require_usable_onnxruntime
from runtime.graphs.target import TARGETS

CPU, CUDA, COREML = "CPUExecutionProvider", "CUDAExecutionProvider", "CoreMLExecutionProvider"
PACKAGE = Path("package")
PROCESSORS = 4


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of the kernel's, on a machine of PROCESSORS."""
    monkeypatch.setattr(session, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: PROCESSORS)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(PROCESSORS)), raising=False)
    return tmp_path


def install(folder: Path, name: str, version: str = "1.99.0") -> None:
    """What pip leaves beside a distribution's files."""
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_threads_without_a_quota(cgroup: Path) -> None:
    assert default_threads() == PROCESSORS


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_threads_follow_the_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "CGROUP", tmp_path)
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))  # as far as the container goes
        for some in (os.sched_getaffinity(0), {min(allowed)}):
            os.sched_setaffinity(0, some)
            assert default_threads() == len(some)
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("content", "threads"),
    [("100000 100000\n", 1), ("50000 100000\n", 1), ("1 100000\n", 1), ("100001 100000\n", 2), ("150000 100000\n", 2)],
)
def test_threads_follow_the_quota_of_cgroup_2(cgroup: Path, content: str, threads: int) -> None:
    (cgroup / "cpu.max").write_text(content)
    assert default_threads() == threads


@pytest.mark.parametrize("content", ["max 100000\n", "max\n", "", "100000000 100000\n"])
def test_no_quota_or_a_large_one(cgroup: Path, content: str) -> None:
    (cgroup / "cpu.max").write_text(content)
    assert default_threads() == PROCESSORS


@pytest.mark.parametrize(("quota", "threads"), [("50000\n", 1), ("120000\n", 2), ("-1\n", PROCESSORS)])
def test_threads_follow_the_quota_of_cgroup_1(cgroup: Path, quota: str, threads: int) -> None:
    (cgroup / "cpu").mkdir()
    (cgroup / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    assert default_threads() == PROCESSORS  # the period is not there yet
    (cgroup / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert default_threads() == threads


def test_the_package_s_provider_is_the_default() -> None:
    assert require_providers(None, "cpu", PACKAGE) == [CPU]
    assert require_providers([CPU], "cpu", PACKAGE) == [CPU]
    assert require_providers((CPU,), "cpu", PACKAGE) == [CPU]


@pytest.mark.parametrize(
    ("providers", "target", "message"),
    [
        ([CUDA], "cpu", f"package was made for {CPU}, not for {CUDA}; export it with --target cuda."),
        ([CUDA, CPU], "cpu", f"package was made for {CPU}, not for {CUDA}; export it with --target cuda."),
        ([CPU, COREML], "cpu", f"package was made for {CPU}, not for {COREML}; pass providers=['{CPU}']."),
        ([COREML], "cuda", f"package was made for {CUDA}, not for {COREML}; pass providers=['{CUDA}']."),
        ([CPU], "cuda", f"package was made for {CUDA}, not for {CPU}; export it with --target cpu."),
        ([CPU, CUDA], "cuda", f"package was made for {CUDA}, not for {CPU}; export it with --target cpu."),
        (["cpu"], "cpu", f"package was made for {CPU}, not for cpu; pass providers=['{CPU}']."),
        (None, "npu", "package was made for the target 'npu', known targets are cpu and cuda."),
    ],
)
def test_providers_a_package_was_not_made_for(providers: list[str] | None, target: str, message: str) -> None:
    with pytest.raises(PackageError) as caught:
        require_providers(providers, target, PACKAGE)
    assert str(caught.value) == message


@pytest.mark.parametrize(("providers", "shown"), [(CPU, f"'{CPU}'"), ([], "[]"), ((), "()"), ("", "''")])
def test_providers_that_are_no_list(providers: list[str], shown: str) -> None:
    with pytest.raises(InputError) as caught:
        require_providers(providers, "cpu", PACKAGE)
    assert str(caught.value) == f"providers is {shown}, expected a list such as ['{CPU}']."


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this onnxruntime has CUDA")
@pytest.mark.parametrize("providers", [None, [CUDA], [CUDA, CPU]])
def test_a_provider_onnxruntime_lacks(providers: list[str] | None) -> None:
    with pytest.raises(PackageError) as caught:
        require_providers(providers, "cuda", PACKAGE)
    assert str(caught.value) == (
        f"package needs {CUDA}, onnxruntime here has {', '.join(ort.get_available_providers())}; "
        "install the onnxruntime distribution that has it, or export the package with --target cpu."
    )


def test_this_installation_is_usable() -> None:
    require_usable_onnxruntime(TARGETS["cpu"])


@pytest.mark.parametrize("other", ["onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"])
def test_two_distributions_over_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    install(tmp_path, "onnxruntime")
    install(tmp_path, other)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PackageError) as caught:
        require_providers(None, "cpu", PACKAGE)
    assert str(caught.value) == (
        f"onnxruntime and {other} are installed over each other and share one folder; keep one: "
        f"pip uninstall -y onnxruntime {other}, then install the one you want."
    )


@pytest.mark.parametrize(
    ("target", "version", "needed"),
    [
        ("cpu", "1.31.2", "onnxruntime>=1.32"),
        ("cpu", "1.9.0", "onnxruntime>=1.32"),
        ("cpu", "0.32.0", "onnxruntime>=1.32"),
        ("cuda", "1.30.1", "onnxruntime-gpu>=1.31"),
    ],
)
def test_an_old_onnxruntime(monkeypatch: pytest.MonkeyPatch, target: str, version: str, needed: str) -> None:
    monkeypatch.setattr(ort, "__version__", version)
    with pytest.raises(PackageError) as caught:
        require_providers(None, target, PACKAGE)
    assert str(caught.value) == (f'onnxruntime {version} lacks operators of these packages; pip install "{needed}".')


@pytest.mark.parametrize("version", ["1.32.0", "1.100.0", "1.33.0.dev20260101", "2.0.0"])
def test_a_new_onnxruntime(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(ort, "__version__", version)
    require_usable_onnxruntime(TARGETS["cpu"])


def test_cuda_does_with_the_newest_wheel_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "__version__", "1.31.1")
    require_usable_onnxruntime(TARGETS["cuda"])


def test_no_other_provider_steps_in(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What CUDA needs is looked for first, and what is printed on the way stays off stdout.

    It is told not to take cuDNN's attention (8 of the bits), nor fewer digits than float32 has.
    """
    asked: list[dict[str, Any]] = []

    def refuse(model: object, options: ort.SessionOptions, **settings: Any) -> None:
        asked.append({"level": options.graph_optimization_level, **settings})
        raise RuntimeError("CUDA does not start")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    monkeypatch.setattr(ort, "preload_dlls", lambda: sys.stdout.write("Failed to load libcudart.so\n"))
    with pytest.raises(PackageError) as caught:
        open_session(Path("decoder.onnx"), [CUDA], 1)
    assert str(caught.value) == (
        f"decoder.onnx cannot be opened by onnxruntime {ort.__version__} (CUDA does not start); "
        f"{CUDA} needs a driver and libraries that fit this onnxruntime."
    )
    settings = {"sdpa_kernel": "19", "use_tf32": "0"}
    assert [(each["providers"], each["enable_fallback"]) for each in asked] == [([(CUDA, settings)], 0)]
    assert asked[0]["level"] == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert capsys.readouterr() == ("", "Failed to load libcudart.so\n")


def test_a_session_has_the_threads_it_was_given(package: Callable[[Shape, Task], Path]) -> None:
    opened = open_session(package(TINY_2B, "embedding") / "decoder.onnx", [CPU], 3)
    options = opened.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    assert opened.get_providers() == [CPU]


@pytest.mark.parametrize("content", [None, b"", b"no graph"])
def test_a_graph_that_cannot_be_opened_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "decoder.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PackageError) as caught:
        open_session(path, [CPU], 1)
    assert str(caught.value).startswith(f"{path} cannot be opened by onnxruntime {ort.__version__} (")
