"""Train a small embedder: pictures and texts of a concept together, all others apart, whole and at fewer dimensions.

    python -m training.embedder FOLDER [--teacher] [--steps 4000]

FOLDER/tiny becomes the checkpoint, FOLDER/tiny.jsonl the curve, or `tiny-teacher` in both; the sources are kept in
FOLDER/sources.
"""

import argparse
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.blueprint import DEFAULTS
from runtime.prompts.prompt import RERANK_SYSTEM
from training.checkpoint import EMBEDDER, TEACHER, new_model, read_weights, write_folder, write_weights
from training.concepts import Concept, read_concepts
from training.data import Contents, Data
from training.evaluate import names, recall
from training.model import Qwen3VL
from training.noise import noisy, unsteadiness
from training.prompts import Prompter
from training.schedule import Course, Point, record, train
from training.texts import said_about
from training.tokenizer import learn_vocabulary

DIMENSIONS = (256, 128, 64, 32)
BATCH = 128  # concepts
ANCHORS_FASTER = 6  # they have nothing but themselves to learn, and may jump
FIRST_SHARPNESS, LATER_SHARPNESS = 14.0, 25.0  # factors of cosines before a softmax
SHARPEST = 10.0  # the less, the further apart cosines have to be
# What the published models are asked for on the query's side, and their default.
INSTRUCTIONS = (DEFAULTS["embedding"].default_instruction, "Retrieve images or text relevant to the user's query.")

SCAFFOLD = "system\nuser\nassistant\n<Instruct>: <Query>:\n<Document>: yes no NULL"  # the other words of the prompts


class Anchors(nn.Module):
    """A vector for each concept [concepts, D], learnt too and left behind: all concepts are negatives at every step."""

    def __init__(self, concepts: int, size: int, sharpest: float):
        super().__init__()
        self.sharpest = sharpest
        self.table = nn.Parameter(torch.randn(concepts, size))
        self.logarithm = nn.Parameter(torch.tensor(math.log(FIRST_SHARPNESS)))

    def start_at(self, vectors: Tensor) -> None:
        """Begin with vectors [concepts, D] instead of random ones."""
        self.table.data.copy_(vectors)
        self.logarithm.data.fill_(math.log(LATER_SHARPNESS))

    @property
    def sharpness(self) -> Tensor:
        """The factor of cosines before a softmax."""
        return self.logarithm.exp().clamp(max=self.sharpest)


def main() -> None:
    """Train, report on stdout, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--every", type=int, default=200, help="steps between evaluations; each writes the weights")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the weights that are there, with a new cosine"
    )
    parser.add_argument("--teacher", action="store_true", help="the narrow and deep one from which the pair begins")
    parser.add_argument(
        "--sharpest", type=float, default=SHARPEST, help="the largest factor of cosines before a softmax"
    )
    parser.add_argument("--rate", type=float, default=1.5e-3, help="the highest learning rate (default %(default)s)")
    parser.add_argument(
        "--steady", type=float, default=0.0, help="weight of what noise like rounding moves (default %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=BATCH, help="concepts a step (default %(default)s)")
    parser.add_argument("--device", default="cpu", help="torch's name of it (default %(default)s)")
    options = parser.parse_args()
    course = Course(options.steps, options.every)
    torch.manual_seed(options.resume)
    checkpoint = options.folder / ("tiny-teacher" if options.teacher else "tiny")
    shape = TEACHER if options.teacher else EMBEDDER
    concepts = read_concepts(options.folder / "sources")
    if options.batch > len(concepts):
        parser.error(f"--batch is {options.batch}, and there are {len(concepts)} concepts; choose fewer.")
    if not options.resume:
        write_folder(checkpoint, learn_vocabulary(corpus(concepts), shape.text.vocab_size), "embedding", shape)
    prompter = Prompter(checkpoint)
    data = Data(options.folder / "sources", prompter, concepts, int(options.resume), options.device)
    model = new_model(checkpoint).to(options.device)
    print(f"{sum(each.numel() for each in model.parameters()):,} parameters, {len(concepts)} concepts", flush=True)
    anchors = Anchors(len(concepts), model.table.shape[1], options.sharpest).to(options.device)
    if options.resume:
        read_weights(checkpoint, model)
        anchors.start_at(names(model, data, prompter, "en"))
    groups = [{"params": list(model.parameters()), "weight_decay": 0.05}, anchor_group(anchors, options.rate)]
    optimizer = torch.optim.AdamW(groups, options.rate, (0.9, 0.98), fused=True)
    lesson = Lesson(model, data, prompter, anchors, options.batch, options.steady)

    def measure(average: Qwen3VL) -> Point:
        write_weights(checkpoint, average)
        return recall(average, data, prompter)

    record(train(model, lesson.loss, measure, optimizer, course), checkpoint.with_suffix(".jsonl"), options.resume)


def anchor_group(anchors: Anchors, rate: float) -> dict[str, Any]:
    """The anchors as an optimizer learns them."""
    return {"params": list(anchors.parameters()), "weight_decay": 0.0, "lr": ANCHORS_FASTER * rate}


def corpus(concepts: list[Concept]) -> list[str]:
    """What the tokenizer learns from: all that is said about the concepts, and the prompts around it."""
    chance = random.Random(0)
    said = [text for each in concepts for texts in said_about(each, chance).values() for text in texts]
    defaults = [each.default_instruction for each in DEFAULTS.values()]
    return [*said, *[*defaults, *INSTRUCTIONS, RERANK_SYSTEM, SCAFFOLD] * 300]  # often enough to become tokens


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a step is about: `batch` concepts, and the weight `steady` of what noise may not move."""

    model: Qwen3VL
    data: Data
    prompter: Prompter
    anchors: Anchors
    batch: int
    steady: float

    def loss(self, step: int) -> Tensor:
        """A text and a picture of each concept against each other, and each against an anchor of every concept."""
        chosen = self.data.some_concepts(self.batch, hard=step % 2 == 0)
        instruction = INSTRUCTIONS[self.data.coin()]
        asked = [("text", instruction), ("picture", INSTRUCTIONS[0])]
        contents = [(self.data.contents(kind, chosen), instruction) for kind, instruction in asked]
        texts, pictures = (read(self.model, self.prompter, each, instruction) for each, instruction in contents)
        target, scale = torch.tensor(chosen, device=texts.device), self.anchors.sharpness
        to_anchors = [classified(each, self.anchors.table, target, scale) for each in (texts, pictures)]
        loss = 0.5 * contrast(texts, pictures, scale) + 0.5 * torch.stack(to_anchors).mean()
        if not self.steady:
            return loss
        half, terms = self.batch // 2, []
        with noisy(self.model):
            for exact, (each, instruction) in zip((texts, pictures), contents, strict=True):
                disturbed = read(self.model, self.prompter, each.first(half), instruction)
                terms.append(unsteadiness(exact[:half], disturbed, self.anchors.table, target[:half]))
        return loss + self.steady * torch.stack(terms).mean()


def read(model: Qwen3VL, prompter: Prompter, contents: Contents, instruction: str) -> Tensor:
    """The embedder's hidden states [B, D]."""
    if contents.pictures is None:
        return model.read(prompter.embedding(contents.texts, instruction))
    batch = contents.pictures
    prompts = prompter.embedding([prompter.picture(batch.cells)] * len(contents), instruction, [batch.cells])
    return model.read(prompts, model.look(batch.patches, batch.grid))


def contrast(left: Tensor, right: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE in both directions, averaged over the Matryoshka dimensions."""
    target = torch.arange(len(left), device=left.device)
    return (classified(left, right, target, scale) + classified(right, left, target, scale)) / 2


def classified(vectors: Tensor, classes: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of [B, D] over the cosines to [C, D], averaged over the Matryoshka dimensions."""
    terms = []
    for size in {min(each, vectors.shape[1]) for each in DIMENSIONS}:
        first, second = (F.normalize(each[:, :size], dim=-1) for each in (vectors, classes))
        terms.append(F.cross_entropy(scale * first @ second.T, target))
    return torch.stack(terms).mean()


if __name__ == "__main__":
    main()
