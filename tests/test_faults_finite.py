"""Packages whose weights hold NaN: the inputs that meet it are named, no others, and nothing of it reaches a vector."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_files import external, load, weights
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B

from runtime import NotFiniteError, Qwen3VLEmbedder, Qwen3VLReranker, Skipped
from runtime.commands.cli import main
from runtime.manifest import DECODER, VISION, Manifest

Packages = Callable[..., Path]
CLOSE = 1e-6
DAMAGED = "horse"
PICTURE = {"image": Image.effect_noise((64, 64), 50).convert("RGB")}
# What all begin with is computed once; then come several packs, the damaged one in the middle of the first.
TEXTS = [{"text": "stone " * 60 + end} for end in ("a", f"the {DAMAGED} b", "c d e", "f " * 30, "g " * 31, "h")]
BAD = 1
WITHIN = 5  # a row where a NaN meets vectorised code
RESULT = "the result is not finite; check the package with python -m runtime check."
IN_VISION = "a picture's result in the vision encoder is not finite; check the package with python -m runtime check."


def write_nan(folder: Path, name: str, graph: str, row: int = 0) -> None:
    """NaN as the first number of a row of the weight `name`; sizes stay, and hashes of weights are not checked."""
    (weight,) = (each for each in weights(load(folder, graph)) if each.name == name)
    file, offset, length = external(weight)
    rows = weight.dims[0] if len(weight.dims) < 3 else int(np.prod(weight.dims))  # the scales of panels are one row
    with (folder / file).open("r+b") as stream:
        stream.seek(offset + row * (length // rows))
        stream.write(b"\xc0\x7f" if length // int(np.prod(weight.dims)) == 2 else b"\x00\x00\xc0\x7f")


@pytest.fixture
def damage(package: Packages, tmp_path: Path) -> Callable[..., Path]:
    """`damage("embedding", name, graph, row)`: a copy of that package with a NaN in it."""

    def make(task: Task, *where: Any) -> Path:
        return damaged(package(TINY_2B, task), tmp_path / "package", *where)

    return make


def damaged(package: Path, folder: Path, *where: Any) -> Path:
    """A copy of a package in `folder`, with `write_nan` there."""
    shutil.copytree(package, folder)
    write_nan(folder, *where)
    return folder


@pytest.fixture
def horse(package: Packages) -> tuple[str, str, int]:
    """Where the token that only the damaged text has is stored."""
    tokenizer = Qwen3VLEmbedder(package(TINY_2B, "embedding")).package.encoder.tokenizer
    (token,) = tokenizer._ids(f" {DAMAGED}")
    return "model.language_model.embed_tokens.weight", DECODER, int(token)


def test_a_damaged_norm_names_the_first_input(damage: Callable[..., Path]) -> None:
    embedder = Qwen3VLEmbedder(damage("embedding", "model.language_model.layers.1.input_layernorm.weight", DECODER))
    with pytest.raises(NotFiniteError) as caught:
        embedder.process(TEXTS)
    assert str(caught.value) == f"inputs[0]: {RESULT}"
    with pytest.raises(NotFiniteError) as caught:
        next(embedder.stream(TEXTS))
    assert str(caught.value) == f"inputs[0]: {RESULT}"
    skipped: list[Skipped] = []
    assert np.isnan(embedder.process(TEXTS, on_error="skip", skipped=skipped)).all()
    assert [str(each.error) for each in skipped] == [f"inputs[{index}]: {RESULT}" for index in range(len(TEXTS))]


@pytest.mark.parametrize("batch_tokens", [64, 256, 1024])
def test_one_damaged_token_loses_its_own_input_only(
    package: Packages, damage: Callable[..., Path], horse: tuple[str, str, int], batch_tokens: int
) -> None:
    expected = Qwen3VLEmbedder(package(TINY_2B, "embedding")).process(TEXTS)
    embedder = Qwen3VLEmbedder(damage("embedding", *horse), batch_tokens=batch_tokens)
    with pytest.raises(NotFiniteError) as caught:
        embedder.process(TEXTS)
    assert str(caught.value) == f"inputs[{BAD}]: {RESULT}"
    skipped: list[Skipped] = []
    rows = embedder.process(TEXTS, on_error="skip", skipped=skipped)
    assert [(each.index, str(each.error)) for each in skipped] == [(BAD, f"inputs[{BAD}]: {RESULT}")]
    assert np.isnan(rows[BAD]).all()
    assert np.abs(np.delete(rows, BAD, 0) - np.delete(expected, BAD, 0)).max() <= CLOSE
    streamed: list[np.ndarray] = []
    with pytest.raises(NotFiniteError, match=rf"^inputs\[{BAD}\]: the result"):
        for row in embedder.stream(TEXTS):
            streamed.append(row)
    assert np.abs(np.stack(streamed) - expected[:BAD]).max() <= CLOSE


def test_a_reranker_names_the_document(
    package: Packages, damage: Callable[..., Path], horse: tuple[str, str, int]
) -> None:
    request = {"query": {"text": "bird " * 60}, "documents": TEXTS}
    expected = Qwen3VLReranker(package(TINY_2B, "reranker")).process(request)
    reranker = Qwen3VLReranker(damage("reranker", *horse))
    with pytest.raises(NotFiniteError) as caught:
        reranker.process(request)
    assert str(caught.value) == f"documents[{BAD}]: {RESULT}"
    skipped: list[Skipped] = []
    scores = reranker.process(request, on_error="skip", skipped=skipped)
    assert [each.index for each in skipped] == [BAD]
    assert np.isnan(scores[BAD])
    assert np.delete(scores, BAD) == pytest.approx(np.delete(expected, BAD), abs=CLOSE)
    # In the query it is part of every pair.
    scores = reranker.process({**request, "query": TEXTS[BAD]}, on_error="skip", skipped=skipped)
    assert np.isnan(scores).all() and len(skipped) == 1 + len(TEXTS)


def test_pictures_are_named_and_texts_go_on(package: Packages, damage: Callable[..., Path]) -> None:
    items = [TEXTS[0], PICTURE, {**PICTURE, "text": "a"}, TEXTS[2]]
    expected = Qwen3VLEmbedder(package(TINY_2B, "embedding")).process(items)
    embedder = Qwen3VLEmbedder(damage("embedding", "model.visual.blocks.2.norm1.weight", VISION))
    with pytest.raises(NotFiniteError) as caught:
        embedder.process(items)
    assert str(caught.value) == f"inputs[1]: {IN_VISION}"
    skipped: list[Skipped] = []
    rows = embedder.process(items, on_error="skip", skipped=skipped)
    assert [(each.index, str(each.error)) for each in skipped] == [(n, f"inputs[{n}]: {IN_VISION}") for n in (1, 2)]
    assert np.isnan(rows).all(axis=1).tolist() == [False, True, True, False]
    assert np.abs(rows[[0, 3]] - expected[[0, 3]]).max() <= CLOSE


@pytest.mark.parametrize(
    "precision", ["int8", pytest.param("int8-portable", marks=pytest.mark.full), "int4", "int4-portable"]
)
def test_a_nan_is_never_rounded_to_a_number(package: Packages, tmp_path: Path, precision: str) -> None:
    whole = package(TINY_2B, "embedding", precision)
    layer, block = "model.language_model.layers.1", "model.visual.blocks.1"
    norms = [f"{layer}.{name}.weight" for name in ("input_layernorm", "self_attn.q_norm", "post_attention_layernorm")]
    products = [f"{layer}.self_attn.{name}_proj.weight" for name in "vo"]
    products += [f"{layer}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    schemes = Manifest.read(whole).matrices
    scales = [f"{each}:{'lower:' if 'two-level' in schemes[each] else ''}scales" for each in products]
    for name in [*norms, *scales]:
        with pytest.raises(NotFiniteError, match=r"^inputs\[0\]: the result is not finite"):
            Qwen3VLEmbedder(damaged(whole, tmp_path / name, name, DECODER, WITHIN)).process(TEXTS[:1])
    for name in (
        "norm1.weight",
        "attn.qkv.weight[v]:scales",
        "attn.proj.weight:scales",
        "mlp.linear_fc1.weight:scales",
    ):
        with pytest.raises(NotFiniteError, match=r"^inputs\[0\]: a picture's result"):
            Qwen3VLEmbedder(damaged(whole, tmp_path / name, f"{block}.{name}", VISION, WITHIN)).process([PICTURE])


def test_a_query_s_picture_is_never_skipped(damage: Callable[..., Path]) -> None:
    reranker = Qwen3VLReranker(damage("reranker", "model.visual.merger.norm.weight", VISION))
    with pytest.raises(NotFiniteError) as caught:
        reranker.process({"query": PICTURE, "documents": TEXTS}, on_error="skip")
    assert str(caught.value) == f"query: {IN_VISION}"
    skipped: list[Skipped] = []
    scores = reranker.process({"query": TEXTS[0], "documents": [TEXTS[0], PICTURE]}, on_error="skip", skipped=skipped)
    assert np.isnan(scores).tolist() == [False, True]
    assert str(skipped[0].error) == f"documents[1]: {IN_VISION}"


def test_the_command_line_says_so(
    damage: Callable[..., Path], horse: tuple[str, str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["embed", str(damage("embedding", *horse)), "--text", "a", "--text", f"the {DAMAGED}"]
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", f"error: inputs[1]: {RESULT}\n")
    assert main([*arguments, "--on-error", "skip"]) == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[1] == {"index": 1, "embedding": None, "error": f"inputs[1]: {RESULT}"}
    assert np.isfinite(lines[0]["embedding"]).all() and err == f"skipped: inputs[1]: {RESULT}\n"
