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
    end-of-sequence token into a completion's text already, and the begin-of-sequence token into a prompt's.

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
    heads = encode_prompts(prompts, tokenizer)
    tails = tokenizer(list(completions), add_special_tokens=False)["input_ids"]
    if _puts_space_first(tokenizer):
        wholes = encode_prompts([p + c for p, c in zip(prompts, completions, strict=True)], tokenizer)
        tails = [
            whole[len(head) :] if whole[: len(head)] == head else tail
            for head, tail, whole in zip(heads, tails, wholes, strict=True)
        ]
    end = tokenizer.eos_token_id
    # A template may have put a line's end behind it.
    input_ids = [
        [*head, *tail] if end in tail[-2:] else [*head, *tail, end] for head, tail in zip(heads, tails, strict=True)
    ]
    return Sequences(input_ids, [len(head) for head in heads])


def encode_prompts(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of prompts, behind the begin-of-sequence token where the tokenizer puts one before a text.

    Args:
        prompts: at least one.
        tokenizer: the model's.

    Returns:
        A list of ids each.

    Raises:
        ValueError: a prompt has no tokens.
    """
    begin = beginning_of(tokenizer)
    unique = list(dict.fromkeys(prompts))  # each stands there once a completion
    encoded = dict(zip(unique, tokenizer(unique, add_special_tokens=False)["input_ids"], strict=True))
    for number, prompt in enumerate(prompts):
        if not encoded[prompt]:
            raise ValueError(f"encode: prompt {number} has no tokens; nothing would predict its completion's first one")
    return [ids if ids[:1] == begin else [*begin, *ids] for ids in map(encoded.__getitem__, prompts)]


def beginning_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a tokenizer puts before every text: models that were trained with it are lost without.

    Args:
        tokenizer: any.

    Returns:
        The id of the begin-of-sequence token alone in a list, or nothing, as GPT-2's tokenizer puts.
    """
    ids = tokenizer("")["input_ids"]
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


def _puts_space_first(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text's first word is read as if a space stood before it, as Llama 2's tokenizer does: then a completion
    that is read alone has a space that a model would not write behind its prompt."""
    head, whole, alone = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("(", "(a", "a"))
    rest = whole[len(head) :]
    return whole[: len(head)] == head and bool(rest) and rest != alone


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
