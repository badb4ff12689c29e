"""Records, checked before any work starts: what the loaders return and what they refuse."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dapedu.data.formats import Kind, Record, canonical
from dapedu.data.sources import DataError, RowError, Source, place, read_source

if TYPE_CHECKING:
    from dapedu.data.sources import Readable


class Records(list[Record]):
    """A list of records that knows where each one stood."""

    def __init__(
        self,
        records: Iterable[Record] = (),
        *,
        source: str = "records",
        unit: str = "",
        positions: Sequence[int] | None = None,
    ) -> None:
        super().__init__(records)
        self.source = source
        self.unit = unit
        self.positions = range(len(self)) if positions is None else positions

    def where(self, index: int) -> str:
        """The place of a record in its source.

        Args:
            index: in this list, as it was loaded: records that are sorted or dropped in place lose their positions.

        Returns:
            As "prefs.jsonl, line 3" (lines count from 1), "prefs.parquet, row 3" (from 0) or "records[3]".
        """
        return place(self.source, self.unit, self.positions[index])


def load_demonstrations(source: Readable, *, split: str = "train") -> Records:
    """Records for supervised fine-tuning.

    Args:
        source: as `read_source` reads it, of {"prompt", "completion"}, of {"messages"}, the last of which is the
            completion, or of preferences, the chosen ones of which are the completions.
        split: of a dataset that has several.

    Returns:
        Records of `prompt` and `completion`, in the source's order, as text or as lists of messages.

    Raises:
        DataError: the source cannot be read or is empty, or a row is not such a record.
    """
    return _load(source, split, "demonstrations")


def load_preferences(source: Readable, *, split: str = "train") -> Records:
    """Records of one comparison each.

    Args:
        source: as `read_source` reads it, of {"prompt", "chosen", "rejected"}, `target` in all or none; without
            `prompt`, it is what both begin with.
        split: of a dataset that has several.

    Returns:
        Records of `prompt`, `chosen`, `rejected` and perhaps `target`, in the source's order, as text or as lists of
        messages.

    Raises:
        DataError: the source cannot be read or is empty, or a row is not such a record.
    """
    return _load(source, split, "preferences")


def load_rankings(source: Readable, *, split: str = "train") -> Records:
    """Records of several completions with their rewards.

    Args:
        source: as `read_source` reads it, of {"prompt", "completions", "rewards"}, the same number k ≥ 2 in every
            record; in a .csv file the lists are JSON.
        split: of a dataset that has several.

    Returns:
        Records of `prompt`, `completions` and `rewards`, in the source's order, as text or as lists of messages.

    Raises:
        DataError: the source cannot be read or is empty, or a row is not such a record.
    """
    return _load(source, split, "rankings")


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


class Scanned(NamedTuple):
    """What became of one row."""

    position: int
    record: Record | None
    form: str  # of a record
    error: RowError | None


def open_rows(source: Readable, split: str) -> Source:
    """`read_source`, for which records that were loaded before keep their positions.

    Args:
        source, split: as there.

    Returns:
        `Source`.

    Raises:
        DataError: as there.
    """
    if isinstance(source, Records):
        return Source(source.source, source.unit, zip(source.positions, source, strict=True))
    return read_source(source, split=split)


def scan(rows: Iterable[tuple[int, object]], kind: Kind) -> Iterator[Scanned]:
    """Every row as a record, or with what is wrong with it.

    Args:
        rows: of a `Source`.
        kind: of the records.

    Yields:
        `Scanned`, one a row. All rankings have as many completions as the first one, and all preferences a target if
        the first one has.
    """
    k = 0
    has_target: bool | None = None
    for position, row in rows:
        try:
            if isinstance(row, RowError):
                raise row
            record, form = canonical(row, kind)
            if kind == "rankings":
                own = len(record["completions"])
                k = k or own
                if own != k:
                    raise RowError("`completions` differs in number", f": {own}, the first record has {k}")
            if has_target is None:
                has_target = "target" in record
            if has_target != ("target" in record):
                first = "one" if has_target else "none"
                raise RowError("`target` is in some records only", f": the first record has {first}")
        except RowError as error:
            yield Scanned(position, None, "", error)
        else:
            yield Scanned(position, record, form, None)


def _load(source: Readable, split: str, kind: Kind) -> Records:
    name, unit, rows = open_rows(source, split)
    records: list[Record] = []
    positions: list[int] = []
    first: Scanned | None = None
    more: Counter[str] = Counter()
    for scanned in scan(rows, kind):
        if scanned.record is not None:
            records.append(scanned.record)
            positions.append(scanned.position)
        elif first is None:
            first = scanned
        elif scanned.error is not None:
            more[scanned.error.kind] += 1
    if first is not None:
        message = f"{place(name, unit, first.position)}: {first.error}{_rest(more, len(records), kind)}"
        raise DataError(message + _advice(name, unit, more, len(records), split))
    if not records:
        raise DataError(f"{name}: no records in it")
    return Records(records, source=name, unit=unit, positions=positions)


def _rest(more: Counter[str], usable: int, kind: Kind) -> str:
    if not more:
        return ""
    kinds = [f"{count:,} × {problem}" for problem, count in more.most_common(4)]
    listed = ", ".join(kinds + ["…"] * (len(more) > 4))
    return f". {more.total():,} more of {usable + more.total() + 1:,} are no {kind} either ({listed})"


def _advice(name: str, unit: str, more: Counter[str], usable: int, split: str) -> str:
    if not more and not usable:
        return ""
    # A list, or a dataset that is not on the disk, is checked where it is.
    command = f"dapedu data check {shlex.quote(name)}" + (f" --split {shlex.quote(split)}" if split != "train" else "")
    if not unit or name == "dataset":
        return ". `dapedu.data.check_records` lists them and keeps the usable ones"
    if not more:
        return f". `{command} --output CLEAN.jsonl` writes the records that can be used"
    return f". `{command}` lists them; with --output CLEAN.jsonl it writes the records that can be used"
