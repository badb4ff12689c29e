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

from dapedu.data import Record, Records, Sequences, beginning_of, encode
from dapedu.models import ScalarHead
from dapedu.train.methods import Method

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Examples:
    """Tokenised records; the k sequences of an example stand next to each other."""

    sequences: Sequences  # examples × k
    k: int
    rewards: Tensor | None = None  # (examples, k), of rankings

    @classmethod
    def of(
        cls,
        records: Sequence[Record],
        method: Method,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
    ) -> Examples:
        """Tokenise records as a method reads them.

        Args:
            records: text, as `dapedu.data` loads it for the method.
            method: of `METHODS`.
            tokenizer: the model's.
            max_length: tokens of the longest sequence, its end included. A longer example loses the beginning of its
                prompt; a completion is never cut. None cuts nothing.

        Returns:
            `Examples`.

        Raises:
            ValueError: there are no records, a record lacks a field, rankings differ in their number of texts, or a
                completion has no tokens, or too many.
        """
        if not records:
            raise ValueError("Examples.of: there are no records")
        texts = [_texts_of(record, method, place_of(records, number)) for number, record in enumerate(records)]
        k = len(texts[0])
        if other := next((number for number, row in enumerate(texts) if len(row) != k), None):
            raise ValueError(
                f"{place_of(records, other)}: {len(texts[other])} texts, the first record has {k}; give all as many"
            )
        prompts = [record["prompt"] for record in records for _ in range(k)]
        sequences = encode(prompts, [text for row in texts for text in row], tokenizer)
        _require_tokens(sequences, records, k)
        if max_length is not None:
            sequences = _shortened(sequences, records, k, max_length, begin=beginning_of(tokenizer))
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

    @cached_property
    def tokens(self) -> list[int]:
        """Tokens of each example's sequences, prompts counted with each."""
        lengths = list(map(len, self.sequences.input_ids))
        return [sum(lengths[row : row + self.k]) for row in range(0, len(lengths), self.k)]

    def select(self, rows: Sequence[int]) -> Sequences:
        """All sequences of some examples, (len(rows) · k) of them.

        Args:
            rows: the examples' numbers.

        Returns:
            Sequences, the k of an example next to each other.
        """
        return self.sequences.select(self.k * row + column for row in rows for column in range(self.k))

    def require_readable(self, model: PreTrainedModel | PeftModel | ScalarHead, records: Sequence[Record]) -> None:
        """Refuse what would fail inside the model, perhaps after hours.

        Args:
            model: what is to read the examples.
            records: what the examples were made of.

        Raises:
            ValueError: an example is too long for the model, or has a token that it does not know.
        """
        config = (model.transformer if isinstance(model, ScalarHead) else model).config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None and max(self.widths) > limit:
            row = self.widths.index(max(self.widths))
            raise ValueError(
                f"{place_of(records, row)}: {self.widths[row]} tokens, prompt and end included, are more than the "
                f"{limit} that the model can read; max_length = {limit} (--max-length) would cut the prompt's beginning"
            )
        known, largest = config.vocab_size, max(map(max, self.sequences.input_ids))
        if largest >= known:
            raise ValueError(
                f"the tokenizer gives token {largest}, but the model knows 0 … {known - 1}; take the model's own one"
            )

    def fingerprint(self) -> str:
        """A checksum of the tokens and rewards: two runs with the same one saw the same data."""
        rewards = [] if self.rewards is None else self.rewards.tolist()
        content = json.dumps([self.sequences.input_ids, self.sequences.prompt_lengths, self.k, rewards])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def place_of(records: Sequence[Record], number: int) -> str:
    """Where a record stood, for a message.

    Args:
        records: from a file, or a list.
        number: from 0.

    Returns:
        "pairs.jsonl, line 3", or "records[2]".
    """
    return records.where(number) if isinstance(records, Records) else f"records[{number}]"


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
    """A batch cut into parts of like length, read one after the other where memory is short.

    The sum of the parts' gradients is the batch's, however it is cut. Batching examples of like length in the first
    place is another thing: such a batch is not a sample of the data any more, each step pulls all lengths one way, and
    where they end is luck.

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


def _require_tokens(sequences: Sequences, records: Sequence[Record], k: int) -> None:
    # The end-of-sequence token is one.
    if int(sequences.lengths.min()) < 2:
        row = int(sequences.lengths.argmin())
        raise ValueError(
            f"{place_of(records, row // k)}: completion {row % k + 1} has no tokens: the tokenizer reads nothing in "
            "its text; remove the record"
        )


def _shortened(
    sequences: Sequences, records: Sequence[Record], k: int, max_length: int, *, begin: list[int]
) -> Sequences:
    """Every example's prompt cut at its beginning, by as much for each of its sequences, so that all of them fit; a
    begin-of-sequence token stays."""
    input_ids, prompt_lengths = [], []
    too_long = []
    for row in range(0, len(sequences), k):
        ids, prompt = sequences.input_ids[row : row + k], sequences.prompt_lengths[row]
        excess = max(0, max(map(len, ids)) - max_length)
        if excess and excess >= prompt - len(begin):
            too_long.append(row // k)
        input_ids += [[*begin, *each[len(begin) + excess :]] if excess else each for each in ids]
        prompt_lengths += [prompt - excess] * k
    if too_long:
        longest = int(sequences.lengths.max())
        raise ValueError(
            f"{place_of(records, too_long[0])}: a completion does not fit in max_length = {max_length} tokens with "
            f"one token of its prompt; so it is in {len(too_long):,} of {len(records):,} records (the longest "
            f"completion has {longest:,} tokens). Raise max_length, or drop them: dapedu data check FILE "
            f"--tokenizer FOLDER --max-length {max_length} --output CLEAN.jsonl"
        )
    return Sequences(input_ids, prompt_lengths)


def _texts_of(record: Record, method: Method, place: str) -> list[str]:
    fields = {"demonstrations": ["completion"], "preferences": ["chosen", "rejected"], "rankings": ["completions"]}
    for field in ("prompt", *fields[method.records]):
        if field not in record:
            raise ValueError(f"{place}: no `{field}`; {method.records} need it")
    if method.records == "rankings":
        return record["completions"]
    texts = [record[field] for field in fields[method.records]]
    return [*texts, record["target"]] if method.has_target and "target" in record else texts
