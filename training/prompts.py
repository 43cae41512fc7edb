"""The runtime's prompts as batches for training: a common beginning and each prompt's own tokens."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from runtime.prompts.inputs import Content
from runtime.prompts.prompt import IMAGE, IMAGE_PAD, VisualTokens, embedding_prompt, expand_visuals, rerank_prompt
from training.model import Blocks, Prompts

Ids = list[int]
MARK = "\x00"  # stands for what is put in later


class Prompter:
    """Puts the ids of texts and pictures into the runtime's prompts.

    The ids are those of the whole prompt, but for a text that begins or ends with punctuation, where the split rule may
    join what stands beside it.
    """

    def __init__(self, folder: Path):
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._pad = self._tokenizer.token_to_id(IMAGE_PAD)

    def ids(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of texts by themselves."""
        return [each.ids for each in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def picture(self, cells: tuple[int, int]) -> Ids:
        """Ids of a picture of (rows, columns) visual tokens."""
        return self.ids([expand_visuals(IMAGE, [VisualTokens(cells[0] * cells[1])])])[0]

    def answers(self) -> tuple[int, int]:
        """The ids of "yes" and "no"."""
        yes, no = (ids[0] for ids in self.ids(["yes", "no"]))
        return yes, no

    def embedding(self, contents: Sequence[Ids], instruction: str, blocks: Blocks = ()) -> Prompts:
        """The embedder's prompts; `blocks` are the cells of the pictures that each of them holds."""
        before, after = embedding_prompt(Content(texts=(MARK,)), instruction).split(MARK)
        tail = self._tokenizer.encode(after).ids  # with <|endoftext|>
        return self._batch(self.ids([before])[0], [each + tail for each in contents], blocks)

    def reranking(self, queries: Sequence[Ids], documents: Sequence[Ids], instruction: str, blocks: Blocks) -> Prompts:
        """The reranker's prompts of pairs; `last` [B, 2] are "<Document", one of its kind, and the end."""
        prompt = rerank_prompt(Content(texts=(MARK,)), Content(texts=(MARK,)), instruction)
        before, between, after = self.ids(prompt.split(MARK))
        pairs = zip(queries, documents, strict=True)
        prompts = self._batch(before, [query + between + document + after for query, document in pairs], blocks)
        read = torch.tensor([len(query) + len(between) - 2 for query in queries])  # between: "\n", "<Document", ">:"
        return replace(prompts, last=torch.stack([read, prompts.last], 1))

    def _batch(self, prefix: Ids, own: Sequence[Ids], blocks: Blocks) -> Prompts:
        ids = np.zeros((len(own), max(map(len, own))), np.int64)
        for row, each in zip(ids, own, strict=True):
            row[: len(each)] = each
        tensor = torch.from_numpy(ids)
        last = torch.tensor([len(each) - 1 for each in own])
        return Prompts(torch.tensor(prefix), tensor, last, tensor == self._pad, tuple(blocks))
