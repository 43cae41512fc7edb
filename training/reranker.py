"""Train a small reranker from the small embedder: yes for the right picture or text, no for those that look alike.

It has not been trained to the end; docs/training.md says how far it came.

    python -m training.reranker FOLDER [--steps 2000]

FOLDER/tiny is read; FOLDER/tiny-reranker becomes the checkpoint, FOLDER/tiny-reranker.jsonl the curve.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.blueprint import DEFAULTS
from training.checkpoint import new_model, read_vocabulary, read_weights, write_folder, write_weights
from training.concepts import read_concepts
from training.data import Data
from training.evaluate import confusable, names, reranked, retrieval
from training.model import Qwen3VL
from training.prompts import Prompter
from training.schedule import Course, Point, train

GROUPS, GROUP = 4, 8  # a step: so many groups of concepts that the embedder takes for each other
RATE = 1e-3
HARD = 0.7  # of the groups, from the middle of the training on; before, the share grows from 0
HALFWAY = 3  # layers
SHARPNESS = 20.0  # a factor of cosines before a softmax
INSTRUCTIONS = (DEFAULTS["reranker"].default_instruction, "Retrieve images or text relevant to the user's query.")
# Query and document of a step, in turn: three in five are a text and a picture.
KINDS = ("text picture", "text text", "text picture", "picture picture", "text picture")


def main() -> None:
    """Train, report on stdout, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=250, help="steps between evaluations")
    parser.add_argument("--resume", action="store_true", help="go on from the reranker that is there")
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
    read_weights(first, embedder)
    read_weights(checkpoint if options.resume else first, model)
    found = retrieval(embedder, data, embedding_prompter)
    data.replace_neighbours(confusable(embedder, data, embedding_prompter))
    probes = Probes(names(embedder, data, embedding_prompter, "en"))
    parameters = [*model.parameters(), *probes.parameters()]
    optimizer = torch.optim.AdamW(parameters, RATE, (0.9, 0.98), weight_decay=0.05, fused=True)
    step_loss = partial(loss, model, probes, data, prompter, options.steps)

    def measure(average: Qwen3VL) -> Point:
        write_weights(checkpoint, average)
        return reranked(average, data, prompter, found, every=4)

    with (options.folder / "tiny-reranker.jsonl").open("a" if options.resume else "w") as curve:
        for entry in train(model, step_loss, measure, optimizer, course):
            print(json.dumps(entry), file=curve, flush=True)
            print(entry, flush=True)


class Probes(nn.Module):
    """Reads from the two hidden states of a pair which concepts the query and the document are of; left behind.

    Both by the same map, halfway through the layers: what is to be compared lies in the same directions then, and there
    are layers left to compare it. Without this, hundreds of steps found nothing.
    """

    def __init__(self, anchors: Tensor):
        super().__init__()
        self.anchors = anchors  # [concepts, D], the embedder's names
        self.head = nn.Sequential(nn.RMSNorm(anchors.shape[1]), nn.Linear(anchors.shape[1], anchors.shape[1]))

    def loss(self, hidden: Tensor, concepts: Tensor) -> Tensor:
        """Cross-entropy of both; hidden [N, 2, D], concepts int64 [N, 2]."""
        read = F.normalize(self.head(hidden), dim=-1)
        return F.cross_entropy((SHARPNESS * read @ self.anchors.T).flatten(0, 1), concepts.flatten())


def loss(model: Qwen3VL, probes: Probes, data: Data, prompter: Prompter, steps: int, step: int) -> Tensor:
    """All pairs of each group: the right document of each query first, and every pair right by itself."""
    kind = KINDS[step % len(KINDS)]
    chosen = data.groups(GROUPS, GROUP, HARD * min(1.0, 2 * step / steps))
    pairs = all_pairs(len(chosen))
    halfway, hidden = pair_states(model, data, prompter, chosen, kind)
    logits = yes_logits(model, hidden, prompter).view(len(chosen), GROUP)
    target = torch.arange(GROUP).repeat(GROUPS)
    right = torch.eye(GROUP).repeat(GROUPS, 1)
    ordered = F.cross_entropy(logits, target)
    alone = F.binary_cross_entropy_with_logits(logits, right, pos_weight=torch.tensor(GROUP - 1.0))
    return ordered + 0.5 * alone + 0.3 * probes.loss(halfway, torch.tensor(chosen)[pairs])


def all_pairs(count: int) -> Tensor:
    """(query, document) int64 [count * GROUP, 2]: each with all of its group."""
    rows = torch.arange(count).repeat_interleave(GROUP)
    columns = (torch.arange(count) // GROUP * GROUP).repeat_interleave(GROUP) + torch.arange(GROUP).repeat(count)
    return torch.stack([rows, columns], 1)


def pair_states(model: Qwen3VL, data: Data, prompter: Prompter, chosen: list[int], kind: str) -> tuple[Tensor, Tensor]:
    """Hidden states [GROUPS * GROUP * GROUP, 2, D], halfway and in the end: each query with its group's documents."""
    sides, looks, blocks = [], [], []
    for side, index in zip(kind.split(), all_pairs(len(chosen)).T, strict=True):
        if side == "text":
            texts = data.texts(chosen)
            sides.append([texts[i] for i in index.tolist()])
            continue
        batch = data.pictures(chosen)
        sides.append([prompter.picture(batch.cells)] * len(index))
        looks.append(model.look(batch.patches, batch.grid).taken(index))
        blocks.append(batch.cells)
    prompts = prompter.reranking(*sides, INSTRUCTIONS[data.coin()], blocks)
    return model.read_twice(prompts, looks[0].followed_by(looks[1:]) if looks else None, HALFWAY)


def yes_logits(model: Qwen3VL, hidden: Tensor, prompter: Prompter) -> Tensor:
    """Hidden states [N, 2, D] → the logit of "yes" against "no" [N]."""
    yes, no = (ids[0] for ids in prompter.ids(["yes", "no"]))
    return hidden[:, -1] @ (model.table[yes] - model.table[no])


if __name__ == "__main__":
    main()
