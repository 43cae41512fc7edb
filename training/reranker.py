"""Train a small reranker from an embedder: yes for the right picture or text, no for those that look alike.

    python -m training.reranker FOLDER --device cuda [--steps 1750]

FOLDER/tiny-teacher is read; FOLDER/tiny-reranker becomes the checkpoint, FOLDER/tiny-reranker.jsonl the curve.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from export.blueprint import DEFAULTS
from training.augment import LARGER
from training.checkpoint import RERANKER, new_model, read_vocabulary, read_weights, write_folder, write_weights
from training.comparison import AT_END, AT_QUERY, COMPARED, THRESHOLD, lay_out
from training.concepts import read_concepts
from training.data import Contents, Data
from training.embedder import Anchors, anchor_group, classified, read
from training.evaluate import INSTRUCTION, confusable, names, reranked, retrieval, yes_logits
from training.model import Qwen3VL
from training.prompts import Prompter
from training.schedule import Course, Point, record, train

TAUGHT, PAIRS = 1100, 384  # steps in which the embedder teaches, and their pairs
RATE, LATER_RATE = 1e-3, 8e-4  # of these, and by default of the later ones
GROUPS, GROUP = 64, 16  # a later step: so many queries, and the documents of each, of which the first is right
WRITTEN_SLOWER = 0.1  # the last layer's rate, in those of the others
SHARPEST = 60.0  # factor of cosines with the concepts' anchors
STEEPNESS = 20.0  # of the logit that is taught, in the cosine of the embedder's vectors
HARD = 0.8  # of the queries' other documents are what the embedder takes for it, in the end; the share grows from 0
INSTRUCTIONS = (DEFAULTS["reranker"].default_instruction, "Retrieve images or text relevant to the user's query.")
# Query and document of a step, in turn: three in five are a text and a picture.
KINDS = ("text picture", "text text", "text picture", "picture picture", "text picture")


def main() -> None:
    """Train, report on stdout, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1750)
    parser.add_argument("--every", type=int, default=250, help="steps between evaluations")
    parser.add_argument("--resume", action="store_true", help="go on from the reranker that is there")
    parser.add_argument(
        "--rate", type=float, default=LATER_RATE, help="the highest learning rate (default %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="torch's name of it (default %(default)s)")
    options = parser.parse_args()
    course = Course(options.steps, options.every)
    torch.manual_seed(1)
    first, checkpoint = options.folder / "tiny-teacher", options.folder / "tiny-reranker"
    write_folder(checkpoint, read_vocabulary(first), "reranker", RERANKER)
    prompter, embedding_prompter = Prompter(checkpoint), Prompter(first)
    concepts = read_concepts(options.folder / "sources")
    data = Data(options.folder / "sources", prompter, concepts, 1, options.device)
    model, embedder = (new_model(each).to(options.device) for each in (checkpoint, first))
    read_weights(first, embedder)
    found = retrieval(embedder, data, embedding_prompter)
    data.replace_neighbours(confusable(embedder, data, embedding_prompter))
    if options.resume:
        read_weights(checkpoint, model)
    else:
        read_weights(first, model, whole=False)
        learn_states(model, embedder, data, prompter, embedding_prompter)
    data.sizes = LARGER
    anchors = Anchors(len(concepts), COMPARED, SHARPEST).to(options.device)
    anchors.start_at(names(embedder, data, embedding_prompter, "en")[:, :COMPARED])
    groups = [*learnt(model, options.rate), anchor_group(anchors, options.rate)]
    optimizer = torch.optim.AdamW(groups, options.rate, (0.9, 0.98), fused=True)
    step_loss = partial(loss, model, data, prompter, anchors, options.steps)

    def measure(average: Qwen3VL) -> Point:
        write_weights(checkpoint, average)
        return reranked(average, data, prompter, found, every=4)

    print(measure(model), flush=True)
    record(train(model, step_loss, measure, optimizer, course), options.folder / "tiny-reranker.jsonl", options.resume)


def learnt(model: Qwen3VL, rate: float) -> list[dict[str, Any]]:
    """What is learnt, and how fast: slowly what was written down, which large steps would bury in noise."""
    written = list(model.model["language_model"].layers[last_layer(model)].parameters())
    known = {id(each) for each in written}
    others = [each for each in model.parameters() if id(each) not in known]
    slow = {"params": written, "weight_decay": 0.0, "lr": WRITTEN_SLOWER * rate}
    return [{"params": others, "weight_decay": 0.05}, slow]


def last_layer(model: Qwen3VL) -> int:
    """The number of the layer that compares."""
    return len(model.model["language_model"].layers) - 1


def learn_states(model: Qwen3VL, embedder: Qwen3VL, data: Data, prompter: Prompter, first: Prompter) -> None:
    """Write the last layer, and teach those below it to leave the embedder's vectors where it finds them."""
    cat = first.embedding(first.ids(["cat"]), INSTRUCTION)
    states, _ = model.read_twice(cat, None, last_layer(model))
    lay_out(model, float(states.detach().norm()) / 2**0.5, *prompter.answers())
    optimizer = torch.optim.AdamW(learnt(model, RATE), RATE, (0.9, 0.98), fused=True)

    def step_loss(step: int) -> Tensor:
        kinds = KINDS[step % len(KINDS)].split()
        queries, others = (data.some_concepts(PAIRS, hard=False) for _ in range(2))
        half, rest = PAIRS // 2, PAIRS // 4
        documents = [*queries[:half], *data.near(queries[half:-rest]), *others[-rest:]]
        sides = [data.contents(kind, each) for kind, each in zip(kinds, (queries, documents), strict=True)]
        states, last = pair_states(model, prompter, *sides, INSTRUCTIONS[data.coin()])
        with torch.no_grad():
            vectors = torch.stack([read(embedder, first, each, INSTRUCTION) for each in sides], 1)[..., :COMPARED]
        learnt_vectors = 1 - F.cosine_similarity(states[..., :COMPARED], vectors, dim=-1).mean()
        cosines = F.cosine_similarity(*vectors.unbind(1), dim=-1)
        answered = F.smooth_l1_loss(yes_logits(model, last, prompter), STEEPNESS * (cosines - THRESHOLD))
        return 10 * learnt_vectors + marked(states) + 0.2 * answered

    for entry in train(model, step_loss, lambda _: {}, optimizer, Course(TAUGHT, 50)):
        print(entry, flush=True)


def loss(model: Qwen3VL, data: Data, prompter: Prompter, anchors: Anchors, steps: int, step: int) -> Tensor:
    """The right document of each query before the others, and every pair right by itself."""
    kinds = KINDS[step % len(KINDS)].split()
    documents = data.groups(GROUPS, GROUP, HARD * step / steps)
    queries = documents[::GROUP]
    sides = [data.contents(kind, each) for kind, each in zip(kinds, (queries, documents), strict=True)]
    states, last = pair_states(model, prompter, *sides, INSTRUCTIONS[data.coin()])
    logits = yes_logits(model, last, prompter).view(GROUPS, GROUP)
    device = logits.device
    ordered = F.cross_entropy(logits, torch.zeros(GROUPS, dtype=torch.int64, device=device))
    right = torch.eye(GROUP, device=device)[0].expand(GROUPS, -1)
    alone = F.binary_cross_entropy_with_logits(logits, right, pos_weight=torch.tensor(GROUP - 1.0, device=device))
    concepts = torch.stack([torch.tensor(queries).repeat_interleave(GROUP), torch.tensor(documents)], 1).to(device)
    about = states[..., :COMPARED].flatten(0, 1)
    classes = classified(about, anchors.table, concepts.flatten(), anchors.sharpness)
    return ordered + 0.5 * alone + 0.5 * classes + 0.2 * marked(states)


def marked(states: Tensor) -> Tensor:
    """How far the numbers of [N, 2, D] beside the compared ones are from the marks that `training.comparison` needs."""
    about, rest = states[..., :COMPARED], states[..., COMPARED:]
    marks = torch.zeros(rest.shape[1:], device=states.device)
    marks[0, AT_QUERY - COMPARED] = marks[1, AT_END - COMPARED] = 1.0
    return (rest / about.norm(dim=-1, keepdim=True) - marks).square().sum(-1).mean()


def pair_states(
    model: Qwen3VL, prompter: Prompter, queries: Contents, documents: Contents, instruction: str
) -> tuple[Tensor, Tensor]:
    """Hidden states [N, 2, D] before the last layer and in the end: each query with its documents, N in all."""
    sides, looks, blocks = [], [], []
    for contents in (queries, documents):
        of_pair = torch.arange(len(documents)) // (len(documents) // len(contents))
        batch = contents.pictures
        if batch is None:
            sides.append([contents.texts[index] for index in of_pair.tolist()])
            continue
        sides.append([prompter.picture(batch.cells)] * len(of_pair))
        looks.append(model.look(batch.patches, batch.grid).taken(of_pair.to(batch.patches.device)))
        blocks.append(batch.cells)
    prompts = prompter.reranking(*sides, instruction, blocks)
    return model.read_twice(prompts, looks[0].followed_by(looks[1:]) if looks else None, last_layer(model))


if __name__ == "__main__":
    main()
