"""Text records in, token batches out: one JSON object a line, checked before any work starts.

A record is a dict of text, in the formats that TRL calls standard with an explicit prompt: a demonstration has
`prompt` and `completion`, a preference `prompt`, `chosen` and `rejected`, a ranking `prompt`, `completions` and
`rewards`. A preference may carry a `target`, the text of a likelihood term (SLiC-HF, CLICK).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Record = dict[str, Any]

_LARGEST = sys.float_info.max


class DataError(ValueError):
    """A file that cannot be used; the message names file, line and field, and says what is expected."""


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


def load_demonstrations(path: str | Path) -> list[Record]:
    """Records for supervised fine-tuning.

    Args:
        path: a .jsonl file of {"prompt", "completion"}.

    Returns:
        The records, in the file's order.

    Raises:
        DataError: the file is missing or empty, or a line is not such a record.
    """
    return _load(path, _check_texts("prompt", "completion"))


def load_preferences(path: str | Path) -> list[Record]:
    """Records of one comparison each.

    Args:
        path: a .jsonl file of {"prompt", "chosen", "rejected"}, `target` if wanted.

    Returns:
        The records, in the file's order.

    Raises:
        DataError: the file is missing or empty, or a line is not such a record.
    """
    return _load(path, _check_texts("prompt", "chosen", "rejected", optional=("target",)))


def load_rankings(path: str | Path) -> list[Record]:
    """Records of several completions with their rewards.

    Args:
        path: a .jsonl file of {"prompt", "completions", "rewards"}, the same number k ≥ 2 in every record.

    Returns:
        The records, in the file's order.

    Raises:
        DataError: the file is missing or empty, or a line is not such a record.
    """
    k: list[int] = []  # of each record so far

    def check(record: Record) -> str | None:
        if problem := _check_ranking(record):
            return problem
        k.append(len(record["completions"]))
        return None if k[-1] == k[0] else f"`completions` has {k[-1]} texts, the first record has {k[0]}"

    return _load(path, check)


def save_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write records, one JSON object a line; the file appears whole or not at all.

    Args:
        path: its folder is made if missing.
        records: dicts that JSON can hold.

    Raises:
        ValueError: a record holds what JSON or UTF-8 cannot: infinity, NaN, half a surrogate pair; or path is a device
            or a pipe, which would be replaced by a file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"save_records: {path} is not a file; name a file, and print that")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf8", newline="\n") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def encode(prompts: Sequence[str], completions: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Sequences:
    """Token ids of prompts and completions, an end-of-sequence token after each completion.

    Prompt and completion are encoded apart, so that a token never spans both.

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
    input_ids = [[*head, *tail, tokenizer.eos_token_id] for head, tail in zip(heads, tails, strict=True)]
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


def _load(path: str | Path, check: Callable[[Record], str | None]) -> list[Record]:
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    records = []
    # Of bytes, and so at line ends alone: str.splitlines would also cut a text at U+2028.
    for number, line in enumerate(_bytes_of(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8-sig"))  # a byte-order mark is no harm
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of 5,000 digits, a deep nest
            raise DataError(f"{path}, line {number}: not JSON ({error}); expected one object a line") from None
        problem = check(record) if isinstance(record, dict) else f"a {type(record).__name__}, expected an object"
        if problem:
            raise DataError(f"{path}, line {number}: {problem}")
        records.append(record)
    if not records:
        raise DataError(f"{path}: no records in it")
    return records


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _check_texts(*fields: str, optional: Sequence[str] = ()) -> Callable[[Record], str | None]:
    def check(record: Record) -> str | None:
        for field in fields:
            if field not in record:
                return f"no `{field}`; there are {', '.join(map(repr, record)) or 'no fields'}"
        for field in (*fields, *(name for name in optional if name in record)):
            if not isinstance(record[field], str):
                return f"`{field}` is a {type(record[field]).__name__}, expected text"
            if not _is_unicode(record[field]):
                return f"`{field}` has half a surrogate pair in it, which is no character"
        return None if record["prompt"].strip() else "`prompt` is empty"

    return check


def _check_ranking(record: Record) -> str | None:
    problem = _check_texts("prompt")(record)
    if problem:
        return problem
    texts, rewards = record.get("completions"), record.get("rewards")
    if not isinstance(texts, list) or not all(isinstance(text, str) and _is_unicode(text) for text in texts):
        return "`completions` is not a list of texts"
    # Not math.isfinite, which raises on a whole number of 400 digits.
    if not isinstance(rewards, list) or not all(type(r) in (int, float) and abs(r) <= _LARGEST for r in rewards):
        return "`rewards` is not a list of finite numbers"
    if len(texts) < 2 or len(rewards) != len(texts):
        return f"`completions` has {len(texts)} texts and `rewards` {len(rewards)} numbers, expected k ≥ 2 of each"
    return None


def _is_unicode(text: str) -> bool:
    """JSON can hold half a surrogate pair, where something cut a text in the middle of an emoji; tokenizers cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
