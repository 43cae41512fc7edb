"""How well the models find the pictures of the unseen style by their names: recall at 1 and 10, before and after
reranking.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from export.blueprint import DEFAULTS
from training.augment import on_white
from training.checkpoint import SIDES
from training.data import Data, as_batch
from training.model import Qwen3VL
from training.prompts import Ids, Prompter
from training.schedule import Point
from training.vision import Pictures

INSTRUCTION = DEFAULTS["embedding"].default_instruction
RERANK_INSTRUCTION = DEFAULTS["reranker"].default_instruction
CHUNK = 256
RECALLED = 20  # candidates that are reranked
SIZE = (SIDES["embedding"], SIDES["embedding"])
RERANKED_SIZE = (SIDES["reranker"], SIDES["reranker"])


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Similarity [N, N] of English names to pictures of the unseen style, the right ones on the diagonal."""

    similarity: Tensor

    def candidates(self) -> Tensor:
        """The best RECALLED pictures of each name, int64 [N, RECALLED]."""
        return self.similarity.topk(RECALLED, 1).indices


@torch.no_grad()
def retrieval(model: Qwen3VL, data: Data, prompter: Prompter, language: str = "en") -> Retrieval:
    """Names of a language against pictures of the unseen style."""
    return Retrieval(names(model, data, prompter, language) @ _embedded(model, data.unseen, prompter).T)


def recall(model: Qwen3VL, data: Data, prompter: Prompter) -> Point:
    """Names in three languages against all pictures of the unseen style."""
    measured = {}
    for language in ("en", "de", "zh"):
        ranks = ranks_of_the_right_one(retrieval(model, data, prompter, language).similarity)
        suffix = "" if language == "en" else f" {language}"
        measured |= {f"R@1{suffix}": hits(ranks, 1), f"R@10{suffix}": hits(ranks, 10)}
    return measured


def ranks_of_the_right_one(similarity: Tensor) -> Tensor:
    """[N, N] with the right ones on the diagonal → ranks [N], 0 the best."""
    return (similarity > similarity.diagonal()[:, None]).sum(1)


def hits(ranks: Tensor, count: int) -> float:
    """The share of ranks among the first `count`."""
    return round(float((ranks < count).float().mean()), 4)


@torch.no_grad()
def confusable(model: Qwen3VL, data: Data, prompter: Prompter, count: int = 24) -> list[list[int]]:
    """For each concept the others whose drawings, over all training styles, are nearest to its English name."""
    queries = names(model, data, prompter, "en")
    similarity = torch.stack([queries @ _embedded(model, style, prompter).T for style in data.drawings]).mean(0)
    similarity.fill_diagonal_(-2)
    nearest: list[list[int]] = similarity.topk(count, 1).indices.tolist()
    return nearest


@torch.no_grad()
def reranked(model: Qwen3VL, data: Data, prompter: Prompter, found: Retrieval, every: int = 1) -> Point:
    """Recall at 1 before and after reranking, for each `every`th name."""
    batch = as_batch(on_white(data.unseen, RERANKED_SIZE))
    pictures = _looked(model, batch.patches, batch.grid)
    said = prompter.ids([each.names["en"] for each in data.concepts])
    chosen = torch.arange(0, len(said), every)
    candidates = found.candidates().cpu()[chosen]
    scores = []
    for some in torch.arange(len(chosen)).split(CHUNK // 8):
        documents = candidates[some].flatten()
        queries: list[Ids] = [said[i] for i in chosen[some].tolist() for _ in range(RECALLED)]
        contents = [prompter.picture(batch.cells)] * len(documents)
        prompts = prompter.reranking(queries, contents, RERANK_INSTRUCTION, [batch.cells])
        hidden = model.read(prompts, pictures.taken(documents.to(pictures.tokens.device)))
        scores.append(yes_logits(model, hidden, prompter).view(-1, RECALLED))
    best = candidates[torch.arange(len(chosen)), torch.cat(scores).argmax(1).cpu()]
    before, after = (float((each == chosen).float().mean()) for each in (candidates[:, 0], best))
    return {"R@1": round(before, 4), "R@1 reranked": round(after, 4)}


def yes_logits(model: Qwen3VL, hidden: Tensor, prompter: Prompter) -> Tensor:
    """Hidden states [N, 2, D] → the logit of "yes" against "no" [N]."""
    yes, no = prompter.answers()
    return hidden[:, -1] @ (model.table[yes] - model.table[no])


def _looked(model: Qwen3VL, patches: Tensor, grid: tuple[int, int]) -> Pictures:
    parts = [model.look(some, grid) for some in patches.split(CHUNK)]
    levels = zip(*(part.deepstack for part in parts), strict=True)
    return Pictures(torch.cat([part.tokens for part in parts]), [torch.cat(level) for level in levels])


def _embedded(model: Qwen3VL, drawings: Tensor, prompter: Prompter) -> Tensor:
    """Unit vectors [N, D] of drawings uint8 [N, H, W, 4] on white."""
    parts = []
    for some in drawings.split(CHUNK):
        batch = as_batch(on_white(some, SIZE))
        contents = [prompter.picture(batch.cells)] * len(some)
        prompts = prompter.embedding(contents, INSTRUCTION, [batch.cells])
        parts.append(model.read(prompts, model.look(batch.patches, batch.grid)))
    return F.normalize(torch.cat(parts), dim=-1)


@torch.no_grad()
def names(model: Qwen3VL, data: Data, prompter: Prompter, language: str) -> Tensor:
    """Unit vectors [N, D] of the concepts' names."""
    said = prompter.ids([each.names[language] for each in data.concepts])
    parts = [model.read(prompter.embedding(said[i : i + CHUNK], INSTRUCTION)) for i in range(0, len(said), CHUNK)]
    return F.normalize(torch.cat(parts), dim=-1)
