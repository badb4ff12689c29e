"""Text records from files: one JSON object a line, checked before any work starts.

A record is a dict of text, in the formats that TRL calls standard with an explicit prompt: a demonstration has
`prompt` and `completion`, a preference `prompt`, `chosen` and `rejected`, a ranking `prompt`, `completions` and
`rewards`. A preference may carry a `target`, the text of a likelihood term (SLiC-HF, CLICK).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]

_LARGEST = sys.float_info.max


class DataError(ValueError):
    """A file that cannot be used; the message names file, line and field, and says what is expected."""


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
