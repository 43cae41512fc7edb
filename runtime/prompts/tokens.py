"""Prompts become token ids with the checkpoint's own tokenizer, cut as the reference's two classes cut.

The embedding checkpoint's post-processor appends `<|endoftext|>` after everything, and that token is pooled; the
reranker's appends nothing. Both come with the tokenizer file.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from runtime.errors import InputError, PackageError
from runtime.manifest import TokenIds

SpecialTokens = Literal["allow", "escape", "refuse"]
SPECIAL_TOKENS: tuple[SpecialTokens, ...] = ("allow", "escape", "refuse")
# truncate_tokens_optimized leaves the turn's last tokens aside: <|im_end|> \n <|im_start|> assistant \n
KEPT_TAIL = 5
# What a turn begins with: <|im_start|> user. The \n behind them may be one token with what follows.
TURN, TURN_TOKENS = "<|im_start|>", 2


class PromptTokenizer:
    """A package's tokenizer and the ids it treats specially. May be used from several threads."""

    def __init__(self, path: Path, tokens: TokenIds):
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
            # A tokenizer.json saved after a call may carry that call's cutting and padding.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self._suffix = np.array(self._tokenizer.encode("").ids, np.int64)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # tokenizers raises bare Exception for any defect, or panics, which is none
            raise PackageError(f"{path} cannot be read ({error}); export the package again.") from error
        self._tokens, self._turn = tokens, self._tokenizer.token_to_id(TURN)
        self._special = np.array(tokens.special, np.int64)
        self._special_texts = tuple(self._tokenizer.id_to_token(token) for token in tokens.special)
        self._pad_texts = tuple(self._tokenizer.id_to_token(token) for token in (tokens.image, tokens.video))

    def checked_text(self, text: str, policy: SpecialTokens, where: str) -> str:
        """A user's text with its special tokens allowed, defused by a space after `<`, or refused.

        Visual pads are never allowed: they would stand for a picture that is not there. Raises InputError.
        """
        found = next((token for token in self._special_texts if token in text), None)
        if found is None:
            return text
        if policy == "escape":
            for token in self._special_texts:
                text = text.replace(token, token.replace("<", "< ", 1))
            return text
        pad = next((token for token in self._pad_texts if token in text), None)
        if policy == "refuse" or pad:
            raise InputError(
                f"{where} contains the special token {pad or found}; "
                "remove it, or pass special_tokens='escape' to embed it as ordinary characters."
            )
        return text

    def embedding_ids(self, prompt: str, max_length: int) -> np.ndarray:
        """Ids cut from the right to `max_length` with the post-processor's suffix kept, int64 [S].

        Mirrors the reference's `truncation=True, max_length=...`. Raises InputError where visual tokens would be cut.
        """
        ids = self._ids(prompt)
        room = max_length - len(self._suffix)
        if room < 1:
            raise InputError(f"max_length is {max_length}, expected at least {len(self._suffix) + 1}.")
        if self.is_visual(ids[room:]).any():
            raise InputError(
                f"the prompt has {len(ids) + len(self._suffix)} tokens, {int(self.is_visual(ids).sum())} of them "
                f"visual, and cutting it to max_length {max_length} would cut visual tokens; "
                "lower max_pixels, fps or max_frames, or raise max_length."
            )
        return np.concatenate([ids[:room], self._suffix])

    def rerank_ids(self, prompt: str, max_length: int) -> np.ndarray:
        """Ids where only ordinary tokens are cut: the last five set apart, all special ones kept, int64 [S].

        Mirrors truncate_tokens_optimized. The result may hold `max_length` + 5 tokens, and more where the special ones
        alone are more than `max_length`, visual pads among them, as the reference's does.
        """
        ids = np.concatenate([self._ids(prompt), self._suffix])
        head, tail = ids[:-KEPT_TAIL], ids[-KEPT_TAIL:]
        if len(head) <= max_length:
            return ids
        special = np.isin(head, self._special)
        room = max_length - int(special.sum())
        kept = special | (np.cumsum(~special) <= room)
        return np.concatenate([head[kept], tail])

    def is_visual(self, ids: np.ndarray) -> np.ndarray:
        """Which ids are visual pads, bool of the same shape."""
        visual: np.ndarray = (ids == self._tokens.image) | (ids == self._tokens.video)
        return visual

    def preamble(self, ids: np.ndarray) -> int:
        """How many of a prompt's ids stand before what its user turn says, 0 where there is no such turn."""
        turns = np.flatnonzero(ids == self._turn)
        return int(turns[1]) + TURN_TOKENS if len(turns) > 1 else 0

    def _ids(self, prompt: str) -> np.ndarray:
        return np.array(self._tokenizer.encode(prompt, add_special_tokens=False).ids, np.int64)
