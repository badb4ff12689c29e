"""Records as token sequences grouped by example, and the order in which training reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dapedu.data import Record, Sequences, encode
from dapedu.train.methods import Method

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Batches' worth of examples that are sorted by length together: enough to save most padding, few enough that
# an epoch is still shuffled.
_SORTED_TOGETHER = 16


@dataclass(frozen=True)
class Examples:
    """Tokenised records; the k sequences of an example stand next to each other."""

    sequences: Sequences  # examples × k
    k: int
    rewards: Tensor | None = None  # (examples, k), of rankings

    @classmethod
    def of(cls, records: Sequence[Record], method: Method, tokenizer: PreTrainedTokenizerBase) -> Examples:
        """Tokenise records as a method reads them.

        Args:
            records: as `dapedu.data` loads them for the method.
            method: of `METHODS`.
            tokenizer: the model's.

        Returns:
            `Examples`.

        Raises:
            ValueError: there are no records, a record lacks a field, or rankings differ in their number of texts.
        """
        if not records:
            raise ValueError("Examples.of: there are no records")
        texts = [_texts_of(record, method, number) for number, record in enumerate(records)]
        if len({len(row) for row in texts}) > 1:
            raise ValueError("Examples.of: the records differ in their number of texts; give all of them as many")
        k = len(texts[0])
        prompts = [record["prompt"] for record in records for _ in range(k)]
        sequences = encode(prompts, [text for row in texts for text in row], tokenizer)
        rewards = torch.tensor([record["rewards"] for record in records]) if method.records == "rankings" else None
        return cls(sequences, k, rewards)

    def __len__(self) -> int:
        return len(self.sequences) // self.k

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each completion, shape (examples, k)."""
        return self.sequences.lengths.view(-1, self.k)

    @cached_property
    def widths(self) -> list[int]:
        """Tokens of the longest sequence of each example, prompt included."""
        lengths = list(map(len, self.sequences.input_ids))
        return [max(lengths[row : row + self.k]) for row in range(0, len(lengths), self.k)]

    def select(self, rows: Sequence[int]) -> Sequences:
        """All sequences of some examples, (len(rows) · k) of them.

        Args:
            rows: the examples' numbers.

        Returns:
            Sequences, the k of an example next to each other.
        """
        return self.sequences.select(self.k * row + column for row in rows for column in range(self.k))

    def fingerprint(self) -> str:
        """A checksum of the tokens and rewards: two runs with the same one saw the same data."""
        rewards = [] if self.rewards is None else self.rewards.tolist()
        content = json.dumps([self.sequences.input_ids, self.sequences.prompt_lengths, self.k, rewards])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def batches_of_epoch(
    widths: Sequence[int], *, batch_size: int, seed: int, epoch: int, bucketing: bool = True
) -> list[list[int]]:
    """The batches of one epoch: a function of seed and epoch, so that a resumed run needs no record of its order.

    Args:
        widths: tokens of each example, which decide who is batched with whom.
        batch_size: examples a batch; the last one may be smaller.
        seed: of the run.
        epoch: counted from 0.
        bucketing: put examples of like length together, within a window of shuffled ones; saves padding.

    Returns:
        Row numbers, every row once.
    """
    generator = torch.Generator().manual_seed(seed + 1_000_003 * epoch)  # no epoch repeats another seed's
    rows = torch.randperm(len(widths), generator=generator).tolist()
    if not bucketing:
        return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    window = _SORTED_TOGETHER * batch_size
    batches = []
    for start in range(0, len(rows), window):
        alike = sorted(rows[start : start + window], key=widths.__getitem__)
        batches += [alike[first : first + batch_size] for first in range(0, len(alike), batch_size)]
    return [batches[number] for number in torch.randperm(len(batches), generator=generator)]


def _texts_of(record: Record, method: Method, number: int) -> list[str]:
    fields = {"demonstrations": ["completion"], "preferences": ["chosen", "rejected"], "rankings": ["completions"]}
    for field in ("prompt", *fields[method.records]):
        if field not in record:
            raise ValueError(f"Examples.of: record {number} has no `{field}`; {method.records} need it")
    if method.records == "rankings":
        return record["completions"]
    texts = [record[field] for field in fields[method.records]]
    return [*texts, record["target"]] if method.has_target and "target" in record else texts
