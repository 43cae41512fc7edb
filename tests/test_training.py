"""The model that the small pair was trained as, against transformers, and what it was given."""

import io
import json
import math
import random
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
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
from quant.fold import largest_by_column, smoothing_scales
from quant.per_token import PerToken
from quant.statistics import InputStatistics
from runtime.media.image import patchify
from runtime.prompts.positions import text_rotary
from training import embedder
from training.augment import PATCH, augmented, patches
from training.checkpoint import EMBEDDER, RERANKER, TEACHER, new_model, read_weights
from training.comparison import AT_END, AT_QUERY, COMPARED, lay_out
from training.concepts import Concept
from training.curves import joined
from training.drawings import read_drawings
from training.evaluate import yes_logits
from training.model import Prompts, Qwen3VL
from training.noise import disturbed, noisy, smoothing, unsteadiness
from training.prompts import Prompter
from training.rotation import as_rotation
from training.schedule import record
from training.sources import NpmPackage, fetch
from training.texts import said_about
from training.widen import KEPT, widen

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


def test_noise_moves_what_is_read_and_leaves_nothing_behind(checkpoint: Checkpoints) -> None:
    model, prompter = load(checkpoint(TINY_2B, "embedding"))
    prompts = prompter.embedding(prompter.ids(TEXTS), INSTRUCTION)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = model.read(prompts)
    with noisy(model):
        moved = model.read(prompts)
        moved.sum().backward()
    assert 0.01 < ((moved - plain).norm() / plain.norm()).item() < 0.15
    weight = model.model["language_model"].layers[0].mlp.up_proj.weight
    assert weight.grad is not None and weight.grad.abs().max() > 0
    assert torch.equal(model.read(prompts), plain)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_noise_has_the_variance_of_the_codes() -> None:
    torch.manual_seed(0)
    rows = torch.randn(500, 256)
    scheme = PerToken()
    stored = torch.from_numpy(scheme.dequantize(*scheme.quantize(rows.numpy())))
    assert 0.95 < (disturbed(rows) - rows).std() / (stored - rows).std() < 1.05


def test_noise_is_smoothed_as_an_export_smooths() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 40, 24) * torch.linspace(0.1, 5, 24), torch.randn(16, 24) * torch.linspace(2, 0.5, 24)
    rows = x.flatten(0, 1).numpy()
    statistics = InputStatistics(np.square(rows).mean(axis=0), np.abs(rows).max(axis=0))
    expected = smoothing_scales(statistics, largest_by_column([weight.numpy()]))
    assert np.allclose(smoothing(x, weight), expected, rtol=1e-4)


def test_only_what_moves_the_order_of_the_nearest_is_unsteady() -> None:
    torch.manual_seed(0)
    exact, noise, anchors = torch.randn(50, 64), torch.randn(50, 64), torch.randn(300, 64)
    target = torch.arange(50)

    def found(*arguments: torch.Tensor) -> float:
        return unsteadiness(*arguments, target).item()

    plain = found(exact, exact + 0.01 * noise, anchors)
    assert math.isclose(found(exact, exact + 0.02 * noise, anchors), plain + math.log(4), abs_tol=0.02)
    assert math.isclose(found(3 * exact, 3 * exact + 0.03 * noise, 5 * anchors), plain, abs_tol=1e-3)
    common = F.normalize(torch.randn(64), dim=0) * 20
    anchors = anchors - anchors @ common[:, None] * common / 400
    exact = exact - exact @ common[:, None] * common / 400
    alone = found(exact, exact + 0.01 * noise, anchors)
    # What all vectors share draws their cosines together, and the noise in these as much.
    assert math.isclose(found(exact + common, exact + common + 0.01 * noise, anchors), alone, abs_tol=0.3)


@torch.no_grad()
def test_a_widened_embedder_computes_what_its_layers_did(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = replace(EMBEDDER.text, vocab_size=300, intermediate_size=TEACHER.text.intermediate_size)
    shapes = replace(TEACHER, text=replace(TEACHER.text, vocab_size=320)), replace(EMBEDDER, text=text)
    models = []
    for name, shape in zip(("narrow", "wide"), shapes, strict=True):
        (tmp_path / name).mkdir()
        config = json.dumps(config_json(shape, "bfloat16"))
        (tmp_path / name / "config.json").write_text(config, encoding="utf-8")
        models.append(new_model(tmp_path / name))
    narrow, wide = models
    for norm in (each for each in narrow.modules() if isinstance(each, torch.nn.RMSNorm)):
        norm.weight.uniform_(0.5, 2)
    narrow.model["language_model"].norm.weight.fill_(1)  # the only one that no matrix follows
    narrow.table.mul_(50)  # so that a norm's epsilon, which is not widened, is nothing beside it
    widen(narrow, wide, {index: index + 20 for index in range(300)})
    language, visual = narrow.model["language_model"], narrow.model["visual"]
    language.layers = torch.nn.ModuleList([language.layers[index] for index in KEPT])
    visual.blocks = visual.blocks[: EMBEDDER.vision.depth]
    own = torch.randint(20, 320, (5, 12))
    is_visual = torch.zeros(5, 12, dtype=torch.bool)
    is_visual[:, 3:9] = True
    looked = [each.look(torch.randn(5, 24, 1536, generator=torch.manual_seed(1)), (4, 6)) for each in (narrow, wide)]
    prompts = Prompts(own[0, :2], own, torch.full((5,), 11), is_visual, [CELLS])
    expected = narrow.read(prompts, looked[0])
    found = wide.read(replace(prompts, prefix=prompts.prefix - 20, own=own - 20), looked[1])
    for size in (32, 64, 128):
        one, other = (F.normalize(each, dim=-1) for each in (expected[:, :size], found[:, : 2 * size]))
        assert (one @ one.T - other @ other.T).abs().max() < 1e-5


@torch.no_grad()
def test_the_written_layer_answers_with_the_cosine(tmp_path: Path) -> None:
    """States as the layers below are taught to leave them, among others, at several distances."""
    torch.manual_seed(0)
    (tmp_path / "config.json").write_text(json.dumps(config_json(RERANKER, "bfloat16")), encoding="utf-8")
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
