"""The model that the small pair was trained as, against transformers, and what it was given."""

import io
import json
import math
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_shapes import config_json
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape
from torch.nn import functional as F

from export.reference import ReferenceEmbedder, ReferenceReranker
from runtime.media.image import patchify
from runtime.prompts.positions import text_rotary
from training import embedder
from training.augment import PATCH, augmented, patches
from training.checkpoint import SHAPES, new_model, read_weights
from training.comparison import AT_END, AT_QUERY, COMPARED, lay_out
from training.concepts import Concept
from training.curves import joined
from training.drawings import read_drawings
from training.evaluate import yes_logits
from training.model import Qwen3VL
from training.prompts import Prompter
from training.rotation import as_rotation
from training.schedule import record, rounded
from training.sources import NpmPackage, fetch
from training.texts import said_about

Checkpoints = Callable[[Shape, Task], Path]
TEXTS = ["a red car", "rain", "一辆红色的汽车"]
INSTRUCTION = "Represent the user's input."
CELLS = (2, 3)


def load(folder: Path) -> tuple[Qwen3VL, Prompter]:
    model = new_model(folder)
    read_weights(folder, model)
    return model, Prompter(folder)


def drawn(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (32 * CELLS[0], 32 * CELLS[1], 3), np.uint8)
    return Image.fromarray(pixels)


def as_patches(pictures: list[Image.Image]) -> tuple[torch.Tensor, tuple[int, int]]:
    stacked = torch.from_numpy(np.stack([np.asarray(each) for each in pictures])).permute(0, 3, 1, 2)
    return patches(stacked.float() / 255)


@torch.no_grad()
def test_it_embeds_as_transformers_does(checkpoint: Checkpoints) -> None:
    folder = checkpoint(TINY_2B, "embedding")
    model, prompter = load(folder)
    reference = ReferenceEmbedder(folder)
    texts = F.normalize(model.read(prompter.embedding(prompter.ids(TEXTS), INSTRUCTION)), dim=-1)
    assert np.abs(texts.numpy() - reference.embed([{"text": text} for text in TEXTS])).max() < 1e-5
    pictures = [drawn(seed) for seed in range(3)]
    prompts = prompter.embedding([prompter.picture(CELLS)] * 3, INSTRUCTION, [CELLS])
    looked = F.normalize(model.read(prompts, model.look(*as_patches(pictures))), dim=-1)
    assert np.abs(looked.numpy() - reference.embed([{"image": each} for each in pictures])).max() < 1e-5


@torch.no_grad()
def test_it_scores_as_transformers_does(checkpoint: Checkpoints) -> None:
    folder = checkpoint(TINY_2B, "reranker")
    model, prompter = load(folder)
    reference = ReferenceReranker(folder)
    pictures = [drawn(seed) for seed in range(len(TEXTS))]
    looked = model.look(*as_patches(pictures))
    picture = [prompter.picture(CELLS)] * len(TEXTS)
    pairs = {
        "texts and pictures": (prompter.ids(TEXTS), picture, looked, [CELLS]),
        "pictures": (picture, picture, looked.followed_by([looked]), [CELLS, CELLS]),
    }
    for name, (queries, documents, seen, blocks) in pairs.items():
        prompts = prompter.reranking(queries, documents, "Find it.", blocks)
        logits = yes_logits(model, model.read(prompts, seen), prompter)
        for index, (text, image) in enumerate(zip(TEXTS, pictures, strict=True)):
            query = {"text": text} if name == "texts and pictures" else {"image": image}
            expected = reference.stages(query, {"image": image}, "Find it.").logit
            assert expected is not None
            assert math.isclose(logits[index].item(), expected, abs_tol=2e-5), name


def test_patches_are_those_of_the_runtime() -> None:
    pixels = np.asarray(drawn(0))
    expected = patchify(np.stack([pixels, pixels]), PATCH)
    found, grid = as_patches([drawn(0)])
    assert grid == (4, 6)
    assert np.abs(found.numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("size", [(96, 96), (64, 128)])
def test_an_augmented_drawing_is_a_picture(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    colour = torch.randint(0, 256, (64, 96, 96, 3), dtype=torch.uint8)
    drawings = torch.cat([colour, torch.full((64, 96, 96, 1), 255, dtype=torch.uint8)], -1)
    pictures = augmented(drawings, size)
    assert pictures.shape == (64, 3, *size)
    assert 0 <= pictures.min() < 0.2 and 0.8 < pictures.max() <= 1
    assert (augmented(drawings, size) - pictures).abs().mean() > 0.01  # never the same


def test_names_come_first_and_keywords_do_not_repeat_them() -> None:
    names, keywords = {"en": "red car", "de": "rotes Auto"}, {"en": ("car", "red car"), "de": ()}
    said = said_about(Concept("1f697", names, keywords, {}), random.Random(0))
    assert [texts[0] for texts in said.values()] == ["red car", "rotes Auto"]
    assert "red car: car" in said["en"] and said["de"] == ["rotes Auto"]


def test_a_curve_goes_on_where_the_training_before_ended(tmp_path: Path) -> None:
    path = tmp_path / "tiny.jsonl"
    record([{"step": 100, "loss": 3.0}, {"step": 200, "loss": 2.0}], path, resumed=False)
    record([{"step": 400, "loss": 1.0}], path, resumed=True)
    assert [point["step"] for point in joined(path) if "loss" in point] == [100, 200, 600]


def test_more_concepts_a_step_than_there_are_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(embedder, "read_concepts", lambda cache: [Concept("1f697", {}, {}, {})] * 3)
    monkeypatch.setattr("sys.argv", ["embedder", str(tmp_path), "--batch", "4"])
    with pytest.raises(SystemExit):
        embedder.main()
    assert capsys.readouterr().err.endswith("error: --batch is 4, and there are 3 concepts; choose fewer.\n")


def test_sources_that_are_cut_short_are_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name in ("a", "b"):
            facts = tarfile.TarInfo(f"package/{name}")
            facts.size = 50_000
            tar.addfile(facts, io.BytesIO(random.Random(0).randbytes(facts.size)))
    contents = [file.getvalue()[:-10_000], file.getvalue()]

    def pack(command: object, cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
        (cwd / "archive.tgz").write_bytes(contents.pop(0))
        return subprocess.CompletedProcess([], 0, stdout="archive.tgz\n")

    monkeypatch.setattr(subprocess, "run", pack)
    package = NpmPackage("some", "1.0", "MIT")
    with pytest.raises(EOFError):
        fetch(package, tmp_path)
    assert sorted(path.name for path in fetch(package, tmp_path).iterdir()) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["some-1.0"]


def test_drawings_that_were_cut_short_are_rendered_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cut(file: Path, content: object) -> None:
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("training.drawings.STYLES", {})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np, "save", cut)
        read_drawings([], tmp_path)
    assert read_drawings([], tmp_path).size == 0


def test_rounded_weights_are_put_back(checkpoint: Checkpoints) -> None:
    model, prompter = load(checkpoint(TINY_2B, "embedding"))
    prompts = prompter.embedding(prompter.ids(TEXTS), INSTRUCTION)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = model.read(prompts)
    with rounded(model):
        coarse = model.read(prompts)
        coarse.sum().backward()
        weight = model.model["language_model"].layers[0].mlp.up_proj.weight
        assert all(len(each.unique()) <= 16 for each in weight[0].view(-1, 32))
    assert (coarse - plain).abs().max() > 1e-3
    assert weight.grad is not None and weight.grad.abs().max() > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_the_written_layer_answers_with_the_cosine(tmp_path: Path) -> None:
    """States as the layers below are taught to leave them, among others, at several distances."""
    torch.manual_seed(0)
    (tmp_path / "config.json").write_text(json.dumps(config_json(SHAPES["reranker"], "bfloat16")), encoding="utf-8")
    model = new_model(tmp_path)
    length, count, yes, no = 20.0, 32, 5, 6
    lay_out(model, length, yes, no)
    hidden = torch.randn(count, 40, 128) * length / 8
    cosines = torch.linspace(-0.4, 0.95, count)
    query = F.normalize(torch.randn(count, COMPARED), dim=-1)
    other = torch.randn(count, COMPARED)
    other = F.normalize(other - (other * query).sum(1, keepdim=True) * query, dim=-1)
    document = cosines[:, None] * query + (1 - cosines[:, None] ** 2).sqrt() * other
    for place, about, mark in ((10, query, AT_QUERY), (39, document, AT_END)):
        hidden[:, place] = 0.0
        hidden[:, place, :COMPARED] = about * length
        hidden[:, place, mark] = length
    language = model.model["language_model"]
    rotary = text_rotary(np.arange(40)[None, None].repeat(3, 0), 10_000, (6, 5, 5))
    _, left = language.layers[-1](hidden, hidden, as_rotation(rotary), as_rotation(rotary))
    logits = language.norm(left[:, -1]) @ (model.table[yes] - model.table[no])
    assert (logits.diff() > 0).all()
    assert (logits > 0)[cosines > 0.55].all() and (logits < 0)[cosines < 0.45].all()
