"""Records as token sequences grouped by example, and the order in which training reads them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dapedu.data import Record, Sequences, encode
from dapedu.train.methods import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
        rewards = None
        if method.records == "rankings":
            rewards = torch.tensor([record["rewards"] for record in records], dtype=torch.float32)
        return cls(sequences, k, rewards)

    def __len__(self) -> int:
        return len(self.sequences) // self.k

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each completion, shape (examples, k)."""
        return self.sequences.lengths.view(-1, self.k)

    @cached_property
    def mean_length(self) -> float:
        """Tokens a completion."""
        return self.lengths.double().mean().item()

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

    def require_readable(self, model: PreTrainedModel) -> None:
        """Refuse what would fail inside the model, perhaps after hours.

        Args:
            model: what is to read the examples.

        Raises:
            ValueError: an example is too long for the model, or has a token that it does not know.
        """
        limit = getattr(model.config, "max_position_embeddings", None)
        if limit is not None and max(self.widths) > limit:
            row = self.widths.index(max(self.widths))
            raise ValueError(
                f"records[{row}] has {self.widths[row]} tokens, prompt and end included, more than the {limit} that "
                "the model can read"
            )
        known, largest = model.config.vocab_size, max(map(max, self.sequences.input_ids))
        if largest >= known:
            raise ValueError(
                f"the tokenizer gives token {largest}, but the model knows 0 … {known - 1}; take the model's own one"
            )

    def fingerprint(self) -> str:
        """A checksum of the tokens and rewards: two runs with the same one saw the same data."""
        rewards = [] if self.rewards is None else self.rewards.tolist()
        content = json.dumps([self.sequences.input_ids, self.sequences.prompt_lengths, self.k, rewards])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def batches_of_epoch(n: int, *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch: a function of seed and epoch, so that a resumed run needs no record of its order.

    Args:
        n: examples.
        batch_size: examples a batch; the last one may be smaller.
        seed: of the run.
        epoch: counted from 0.

    Returns:
        Row numbers, every row once.
    """
    generator = torch.Generator().manual_seed(seed + 1_000_003 * epoch)  # no epoch repeats another seed's
    rows = torch.randperm(n, generator=generator).tolist()
    return [rows[start : start + batch_size] for start in range(0, n, batch_size)]


def parts_of_batch(rows: Sequence[int], widths: Sequence[int], *, parts: int) -> list[list[int]]:
    """A batch cut into parts of like length, which are padded to their own longest example only.

    Batching examples of like length in the first place would save more padding. But then a batch is not a sample of
    the data any more: each step pulls all lengths one way, and where they end is luck. The sum of the parts' gradients
    is the batch's, however it is cut.

    Args:
        rows: the batch's.
        widths: tokens of each example.
        parts: how many; fewer if the batch has not so many rows.

    Returns:
        Row numbers, shortest examples first.
    """
    alike = sorted(rows, key=widths.__getitem__)
    size = math.ceil(len(rows) / parts)
    return [alike[start : start + size] for start in range(0, len(rows), size)]


def _texts_of(record: Record, method: Method, number: int) -> list[str]:
    fields = {"demonstrations": ["completion"], "preferences": ["chosen", "rejected"], "rankings": ["completions"]}
    for field in ("prompt", *fields[method.records]):
        if field not in record:
            raise ValueError(f"Examples.of: records[{number}] has no `{field}`; {method.records} need it")
    if method.records == "rankings":
        return record["completions"]
    texts = [record[field] for field in fields[method.records]]
    return [*texts, record["target"]] if method.has_target and "target" in record else texts
