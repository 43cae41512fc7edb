"""Train the small reranker from the small embedder: yes for the right picture or text, no for those that look alike.

    python -m training.reranker FOLDER [--steps 2000]

FOLDER/tiny is read; FOLDER/tiny-reranker becomes the checkpoint, FOLDER/tiny-reranker.jsonl the curve.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from export.blueprint import DEFAULTS
from training.checkpoint import new_model, read_vocabulary, read_weights, write_folder, write_weights
from training.concepts import read_concepts
from training.data import Data
from training.evaluate import confusable, reranked, retrieval
from training.model import Qwen3VL
from training.prompts import Prompter
from training.schedule import Course, Point, train

GROUPS, GROUP = 4, 8  # a step: so many groups of concepts that the embedder takes for each other
RATE = 7e-4
INSTRUCTIONS = (DEFAULTS["reranker"].default_instruction, "Retrieve images or text relevant to the user's query.")
# Query and document of a step, in turn: three in five are a text and a picture.
KINDS = ("text picture", "text text", "text picture", "picture picture", "text picture")


def main() -> None:
    """Train, report on stdout, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=250, help="steps between evaluations")
    parser.add_argument("--rounded", action="store_true", help="every other step with weights as 4 bits hold them")
    options = parser.parse_args()
    course = Course(options.steps, options.every, options.rounded)
    torch.manual_seed(1)
    first, checkpoint = options.folder / "tiny", options.folder / "tiny-reranker"
    write_folder(checkpoint, read_vocabulary(first), "reranker")
    prompter, embedding_prompter = Prompter(checkpoint), Prompter(first)
    concepts = read_concepts(options.folder / "sources")
    data = Data(options.folder / "sources", prompter, concepts, seed=1)
    model, embedder = new_model(first), new_model(first)
    for each in (model, embedder):
        read_weights(first, each)
    found = retrieval(embedder, data, embedding_prompter)
    data.replace_neighbours(confusable(embedder, data, embedding_prompter))
    optimizer = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.98), weight_decay=0.05, fused=True)
    step_loss = partial(loss, model, data, prompter)

    def measure(average: Qwen3VL) -> Point:
        write_weights(checkpoint, average)
        return reranked(average, data, prompter, found, every=4)

    with (options.folder / "tiny-reranker.jsonl").open("w") as curve:
        for entry in train(model, step_loss, measure, optimizer, course):
            print(json.dumps(entry), file=curve, flush=True)
            print(entry, flush=True)


def loss(model: Qwen3VL, data: Data, prompter: Prompter, step: int) -> Tensor:
    """All pairs of each group: the right document of each query first, and every pair right by itself."""
    kind = KINDS[step % len(KINDS)]
    chosen = data.groups(GROUPS, GROUP)
    logits = group_logits(model, data, prompter, chosen, kind)
    target = torch.arange(GROUP).repeat(GROUPS)
    right = torch.eye(GROUP).repeat(GROUPS, 1)
    ordered = F.cross_entropy(logits, target)
    alone = F.binary_cross_entropy_with_logits(logits, right, pos_weight=torch.tensor(GROUP - 1.0))
    return ordered + 0.5 * alone


def group_logits(model: Qwen3VL, data: Data, prompter: Prompter, chosen: list[int], kind: str) -> Tensor:
    """Logits of "yes" [GROUPS * GROUP, GROUP]: each concept's query against the documents of its group."""
    query_kind, document_kind = kind.split()
    count = len(chosen)
    rows = torch.arange(count).repeat_interleave(GROUP)
    columns = (torch.arange(count) // GROUP * GROUP).repeat_interleave(GROUP) + torch.arange(GROUP).repeat(count)
    sides, looks, blocks = [], [], []
    for side, index in ((query_kind, rows), (document_kind, columns)):
        if side == "text":
            texts = data.texts(chosen)
            sides.append([texts[i] for i in index.tolist()])
            continue
        batch = data.pictures(chosen)
        sides.append([prompter.picture(batch.cells)] * len(index))
        looks.append(model.look(batch.patches, batch.grid).taken(index))
        blocks.append(batch.cells)
    prompts = prompter.reranking(*sides, INSTRUCTIONS[data.coin()], blocks)
    pictures = looks[0].followed_by(looks[1:]) if looks else None
    return yes_logits(model, model.read(prompts, pictures), prompter).view(count, GROUP)


def yes_logits(model: Qwen3VL, hidden: Tensor, prompter: Prompter) -> Tensor:
    """Hidden states [N, D] → the logit of "yes" against "no" [N]."""
    yes, no = (ids[0] for ids in prompter.ids(["yes", "no"]))
    return hidden @ (model.table[yes] - model.table[no])


if __name__ == "__main__":
    main()
