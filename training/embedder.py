"""Train the small embedder: pictures and texts of a concept together, all others apart, at 128, 64 and 32 dimensions.

    python -m training.embedder FOLDER [--steps 4000]

FOLDER/tiny becomes the checkpoint, FOLDER/tiny.jsonl the curve; the sources are kept in FOLDER/sources.
"""

import argparse
import json
import math
import random
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from export.blueprint import DEFAULTS
from runtime.prompt import RERANK_SYSTEM
from training.checkpoint import new_model, write_folder, write_weights
from training.concepts import read_concepts
from training.data import Data
from training.evaluate import recall
from training.model import Qwen3VL
from training.prompts import Prompter
from training.schedule import train
from training.texts import said_about
from training.tokenizer import learn_vocabulary

DIMENSIONS = (128, 64, 32)
BATCH = 128
RATE = 1.5e-3
SHARPEST = 60.0  # the largest factor before the softmax
# What the published models are asked for on the query's side, and their default.
INSTRUCTIONS = (DEFAULTS["embedding"].default_instruction, "Retrieve images or text relevant to the user's query.")


def main() -> None:
    """Train, report on stdout, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--every", type=int, default=250, help="steps between evaluations")
    options = parser.parse_args()
    torch.manual_seed(0)
    checkpoint = options.folder / "tiny"
    concepts = read_concepts(options.folder / "sources")
    corpus = [text for each in concepts for texts in said_about(each, random.Random(0)).values() for text in texts]
    prompts = [each.default_instruction for each in DEFAULTS.values()] + list(INSTRUCTIONS)
    write_folder(checkpoint, learn_vocabulary([*corpus, *frequent(prompts)]), "embedding")
    prompter = Prompter(checkpoint)
    data = Data(options.folder / "sources", prompter, concepts, seed=0)
    model = new_model(checkpoint)
    print(f"{sum(each.numel() for each in model.parameters()):,} parameters, {len(concepts)} concepts", flush=True)
    scale = torch.nn.Parameter(torch.tensor(math.log(14.0)))
    groups = [{"params": list(model.parameters()), "weight_decay": 0.05}, {"params": [scale], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, RATE, (0.9, 0.98), fused=True)
    step_loss = partial(loss, model, data, prompter, scale)
    measure = partial(recall, data=data, prompter=prompter)
    with (options.folder / "tiny.jsonl").open("w") as curve:
        for entry in train(model, step_loss, measure, optimizer, options.steps, options.every):
            print(json.dumps(entry), file=curve, flush=True)
            print(entry, flush=True)
    write_weights(checkpoint, model)


def frequent(prompts: list[str]) -> list[str]:
    """The words of the prompts, often enough to become tokens."""
    return [*prompts, RERANK_SYSTEM, "system\nuser\nassistant\n<Instruct>: <Query>:\n<Document>: yes no NULL"] * 300


def loss(model: Qwen3VL, data: Data, prompter: Prompter, scale: Tensor, step: int) -> Tensor:
    """Two texts and a picture of each concept, or two pictures and a text, each pair against all others."""
    sharpness = scale.exp().clamp(max=SHARPEST)
    chosen = data.some_concepts(BATCH, hard=step % 2 == 0)
    document, query = INSTRUCTIONS[0], INSTRUCTIONS[data.coin()]
    views = [read_texts(model, data, prompter, chosen, query), look_at(model, data, prompter, chosen, document)]
    third = read_texts if step // 2 % 2 else look_at
    views.append(third(model, data, prompter, chosen, document))
    pairs = [(0, 1, 1.0), (0, 2, 0.5 if third is read_texts else 1.0), (1, 2, 1.0 if third is read_texts else 0.5)]
    terms = [weight * contrast(views[a], views[b], sharpness) for a, b, weight in pairs]
    return sum(terms, start=torch.zeros(())) / sum(weight for _, _, weight in pairs)


def read_texts(model: Qwen3VL, data: Data, prompter: Prompter, chosen: list[int], instruction: str) -> Tensor:
    """Hidden states [B, D] of a text about each concept."""
    return model.read(prompter.embedding(data.texts(chosen), instruction))


def look_at(model: Qwen3VL, data: Data, prompter: Prompter, chosen: list[int], instruction: str) -> Tensor:
    """Hidden states [B, D] of a drawing of each concept."""
    batch = data.pictures(chosen)
    prompts = prompter.embedding([prompter.picture(batch.cells)] * len(chosen), instruction, [batch.cells])
    return model.read(prompts, model.look(batch.patches, batch.grid))


def contrast(left: Tensor, right: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE in both directions, averaged over the Matryoshka dimensions."""
    target = torch.arange(len(left))
    terms = []
    for size in DIMENSIONS:
        first, second = (F.normalize(each[:, :size], dim=-1) for each in (left, right))
        logits = scale * first @ second.T
        terms += [F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)]
    return torch.stack(terms).mean()


if __name__ == "__main__":
    main()
