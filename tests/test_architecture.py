"""Who may import what, what is public, where printing is allowed: read from the sources, seen in fresh processes."""

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import runtime

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("runtime", "quant", "export")
# Distributions each package may use beside the standard library; `export/reference*.py` adds the torch reference.
ALLOWED = {
    "runtime": {
        *("runtime", "numpy", "PIL", "tokenizers", "onnxruntime", "tqdm", "av", "filelock", "usearch"),
        *("langchain_core", "llama_index", "pydantic"),
    },
    "quant": {"quant", "runtime", "numpy", "PIL", "ml_dtypes", "onnxruntime", "tqdm", "onnx", "matplotlib"},
    "export": {
        *("export", "quant", "runtime", "numpy", "PIL", "onnxruntime", "tqdm"),
        *("filelock", "huggingface_hub", "jinja2", "ml_dtypes", "onnx", "safetensors"),
    },
}
REFERENCE = {"torch", "torchvision", "transformers", "qwen_vl_utils", "decord"}
# Only there, and there only inside functions: nobody else needs them installed.
LAZY = {
    "av": "runtime/media/video_file.py",
    "huggingface_hub": "export/source.py",
    "matplotlib": "quant/plot.py",
    "usearch": "runtime/search/vector_store.py",
}
# Each derives from that library's classes, so nobody imports it but who has the library.
ADAPTERS = {"langchain_core": "runtime/langchain.py", "llama_index": "runtime/llama_index.py"}
ONLY = {
    "jinja2": "export/settings.py",
    "pydantic": "runtime/langchain.py",
    "tokenizers": "runtime/prompts/tokens.py",
} | ADAPTERS
# Of the runtime, each of which uses only itself, those before it and modules beside them.
FOLDERS = ("media", "prompts", "graphs", "planning", "search", "commands")

SOURCES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))


@dataclass(frozen=True)
class Import:
    """One imported distribution or package of ours; `deferred`: not when the file is, but in a function or never."""

    file: str
    module: str
    deferred: bool


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file, those by importlib.import_module too."""
    name = path.relative_to(REPOSITORY).as_posix()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    holders = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) or is_for_type_checkers(node)]
    deferred = {id(node) for holder in holders for node in ast.walk(holder)}
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            modules = [node.module or ""]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "import_module":
            # A name that is computed is one of the reference's.
            modules = [str(node.args[0].value) if isinstance(node.args[0], ast.Constant) else "torch"]
        for module in modules:
            yield Import(name, module.partition(".")[0], id(node) in deferred)


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def foreign() -> list[Import]:
    """All imports of all files but those of the standard library."""
    return [each for path in SOURCES for each in imports(path) if each.module not in sys.stdlib_module_names]


def is_reference(file: str) -> bool:
    return file.startswith("export/reference")


def test_the_sources_were_found() -> None:
    found = {each.file for each in foreign()}
    assert {"runtime/embedder.py", "quant/schemes.py", "export/graph.py", "export/reference.py"} <= found
    assert {each.module for each in foreign() if is_reference(each.file)} & REFERENCE == REFERENCE - {
        "torchvision",
        "decord",
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    wrong = [
        each
        for each in foreign()
        if each.file.startswith(f"{package}/")
        and each.module not in ALLOWED[package]
        and not (is_reference(each.file) and each.module in REFERENCE)
    ]
    assert wrong == []


def test_the_folders_of_the_runtime_do_too() -> None:
    def folder(module: str) -> str:
        return module.split(".")[1] if module.count(".") > 1 else ""

    arrows = [
        (folder(name), folder(node.module))
        for name in modules_of("runtime")
        for node in ast.walk(ast.parse((REPOSITORY / name.replace(".", "/")).with_suffix(".py").read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("runtime.")
    ]
    between = {arrow for arrow in arrows if all(arrow)}
    assert {folder for arrow in between for folder in arrow} == set(FOLDERS)
    assert [(user, used) for user, used in between if FOLDERS.index(user) < FOLDERS.index(used)] == []


def test_torch_is_imported_inside_functions_of_the_reference_only() -> None:
    assert [
        each for each in foreign() if each.module in REFERENCE and not (is_reference(each.file) and each.deferred)
    ] == []


@pytest.mark.parametrize(("module", "file"), (LAZY | ONLY).items())
def test_some_libraries_have_one_importer(module: str, file: str) -> None:
    found = [each for each in foreign() if each.module == module]
    assert {each.file for each in found} == {file}
    if module in LAZY:
        assert all(each.deferred for each in found)


def test_onnx_files_are_written_by_one_module_and_opened_up_by_another() -> None:
    assert {each.file for each in foreign() if each.module == "onnx"} == {"export/graph.py", "quant/taps.py"}


def test_print_is_for_command_lines() -> None:
    printing = {
        path.relative_to(REPOSITORY).as_posix()
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert {"export/cli.py", "runtime/commands/cli.py"} <= printing
    assert {Path(file).name for file in printing} <= {"cli.py", "__main__.py", "exit_code.py"}


def loaded(*modules: str) -> set[str]:
    """Top-level modules that are in a fresh interpreter after importing `modules`."""
    code = f"import json, sys, {', '.join(modules)}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def modules_of(package: str) -> list[str]:
    names = (path.relative_to(REPOSITORY).with_suffix("") for path in SOURCES)
    return [".".join(name.parts) for name in names if name.parts[0] == package and name.stem != "__init__"]


def test_the_runtime_loads_nothing_heavy() -> None:
    found = loaded("runtime")
    assert {"runtime", "numpy", "onnxruntime"} <= found
    assert not found & {*REFERENCE, "onnx", "ml_dtypes", "export", "quant", "av", "huggingface_hub"}
    assert not found & {"filelock", "usearch"}


def test_the_adapters_are_for_their_libraries_only() -> None:
    assert not loaded("runtime", "runtime.retrieval", "runtime.commands.cli") & {*ADAPTERS, "pydantic"}


def test_no_module_of_the_runtime_does() -> None:
    found = loaded(*modules_of("runtime"))
    assert {*ADAPTERS} <= found
    assert not found & {*REFERENCE, "onnx", "ml_dtypes", "export", "quant", "av", "huggingface_hub"}
    assert not found & {"filelock", "usearch"}


def test_exporting_and_quantising_load_no_torch() -> None:
    found = loaded(*modules_of("export"), *modules_of("quant"))
    assert {"export", "quant", "onnx"} <= found
    assert not found & {*REFERENCE, "av", "huggingface_hub"}


def test_quantising_knows_no_exporter() -> None:
    assert not loaded(*modules_of("quant")) & {*REFERENCE, "export", "onnx", "av", "huggingface_hub"}


def test_what_is_public() -> None:
    assert runtime.__all__ == sorted(runtime.__all__)
    assert set(runtime.__all__) == {
        "CheckpointError",
        "FetchLimits",
        "Hit",
        "InputError",
        "MediaError",
        "MissingExtraError",
        "NotFiniteError",
        "OutOfMemoryError",
        "PackageError",
        "Qwen3VLEmbedder",
        "Qwen3VLError",
        "Qwen3VLReranker",
        "SearchIndexError",
        "Searcher",
        "Skipped",
        "__version__",
        "rerank",
    }
    assert all(hasattr(runtime, name) for name in runtime.__all__)


def test_nothing_public_is_unlisted() -> None:
    code = ast.parse((REPOSITORY / "runtime" / "__init__.py").read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name for node in code.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == set(runtime.__all__)


@pytest.mark.parametrize("name", ["runtime", "quant", "export"])
def test_every_module_can_be_imported_alone(name: str) -> None:
    for module in modules_of(name):
        assert importlib.import_module(module).__doc__, f"{module} does not say what it is for"
