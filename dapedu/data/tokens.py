"""From text to batches of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sequences:
    """Prompts with their completions, as token ids."""

    input_ids: list[list[int]]  # prompt and completion, one list a sequence
    prompt_lengths: list[int]  # how many of them are the prompt's

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each completion, shape (sequences,)."""
        return torch.tensor(list(map(len, self.input_ids))) - torch.tensor(self.prompt_lengths)

    def select(self, rows: Iterable[int]) -> Sequences:
        """Some of the sequences.

        Args:
            rows: their numbers, in the order wanted.

        Returns:
            Sequences that share the lists of ids.
        """
        rows = list(rows)
        return Sequences([self.input_ids[row] for row in rows], [self.prompt_lengths[row] for row in rows])


def encode(prompts: Sequence[str], completions: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Sequences:
    """Token ids of prompts and completions, an end-of-sequence token after each completion that has none.

    Prompt and completion are encoded apart, so that a token never spans both. A chat template may have put the
    end-of-sequence token into a completion's text already.

    Args:
        prompts: one a sequence.
        completions: as many.
        tokenizer: one with an end-of-sequence token.

    Returns:
        `Sequences`.

    Raises:
        ValueError: the counts differ, a prompt has no tokens, or the tokenizer has no end-of-sequence token.
    """
    if len(prompts) != len(completions):
        raise ValueError(f"encode: {len(prompts)} prompts and {len(completions)} completions")
    if tokenizer.eos_token_id is None:
        raise ValueError("encode: tokenizer has no eos_token, so a completion could not end; set tokenizer.eos_token")
    if not prompts:
        return Sequences([], [])
    heads = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    tails = tokenizer(list(completions), add_special_tokens=False)["input_ids"]
    if not all(heads):
        empty = next(row for row, head in enumerate(heads) if not head)
        raise ValueError(f"encode: prompt {empty} has no tokens; nothing would predict its completion's first one")
    end = tokenizer.eos_token_id
    input_ids = [
        [*head, *tail] if end in tail else [*head, *tail, end] for head, tail in zip(heads, tails, strict=True)
    ]
    return Sequences(input_ids, [len(head) for head in heads])


def collate(sequences: Sequences, *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """One rectangle of tokens, no wider than its longest sequence.

    Args:
        sequences: a batch, at least one sequence.
        device: where to put it.

    Returns:
        input_ids, padded on the right, and completion_mask, true on the completions' tokens; both of shape
        (sequences, tokens). Under causal attention no token sees the padding to its right, so there is no attention
        mask, and it does not matter which token pads.
    """
    width = max(map(len, sequences.input_ids))
    # Each row's first token pads it: transformers warns of a missing mask where it meets the tokenizer's own padding.
    firsts = torch.tensor([ids[0] for ids in sequences.input_ids])
    input_ids = firsts[:, None].repeat(1, width)
    completion_mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, (ids, start) in enumerate(zip(sequences.input_ids, sequences.prompt_lengths, strict=True)):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        completion_mask[row, start : len(ids)] = True
    return input_ids.to(device), completion_mask.to(device)
