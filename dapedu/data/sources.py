"""Raw rows with their positions, from files, folders, `datasets` objects and names on the Hugging Face hub."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn, TypeAlias

if TYPE_CHECKING:
    import datasets

    Readable: TypeAlias = str | Path | datasets.Dataset | datasets.DatasetDict | list[dict[str, Any]]

# What a row of any kind may have; other columns are not even read where that saves work.
FIELDS = ("prompt", "chosen", "rejected", "target", "completion", "completions", "rewards", "messages")

_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")
_CHUNK = 1 << 20  # bytes
_LONGEST = 10 << 20  # bytes of a line
_GIVE_UP = 64 << 20  # bytes: a longer line is not even skipped
_BATCH = 1000  # rows
_UNREAD = "; what follows was not read"


class DataError(ValueError):
    """Data that cannot be used; the message names file, position and field, and says what is expected."""


class RowError(Exception):
    """What is wrong with one row: its kind, which is counted, and the details that complete the message."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind + detail)
        self.kind, self.detail = kind, detail


class Source(NamedTuple):
    """Rows that can be read once."""

    name: str  # as the user wrote it
    unit: str  # what a position counts: line, row, record; "" for a list
    rows: Iterator[tuple[int, Any]]  # position; the row, or the RowError that stands in its place


def place(name: str, unit: str, position: int) -> str:
    """A position as a reader finds it.

    Args:
        name, unit, position: of a `Source`.

    Returns:
        As "prefs.jsonl, line 3" (lines count from 1), "prefs.parquet, row 3" (from 0) or "records[3]".
    """
    return f"{name}, {unit} {position}" if unit else f"{name}[{position}]"


def one_line(error: Exception) -> str:
    """The beginning of what a library says of its error.

    Args:
        error: the library's.

    Returns:
        At most 200 characters without line ends.
    """
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else words[:199] + "…"


def read_source(source: Readable, *, split: str = "train") -> Source:
    """Rows of whatever holds records.

    Args:
        source: a .jsonl, .jsonl.gz, .json (an array of objects), .csv (with a header) or .parquet file, a folder that
            `Dataset.save_to_disk` wrote, a `datasets.Dataset` or `DatasetDict`, a list of dicts, or the name of a
            dataset on the hub, owner/name or owner/name:config. No code from the hub is run.
        split: of a dataset that has several.

    Returns:
        `Source`; a row that could not be read is a `RowError` there.

    Raises:
        DataError: nothing can be read.
    """
    if isinstance(source, list | tuple):
        return Source("records", "", iter(enumerate(source)))
    if isinstance(source, str | Path):
        return _from_path(str(source), split)
    library = sys.modules.get("datasets")  # who holds a Dataset has imported it
    if library and isinstance(source, library.Dataset | library.DatasetDict):
        return _from_dataset("dataset", source, split)
    raise DataError(f"{type(source).__name__} as a source of records; expected a path, a datasets.Dataset or a list")


def _from_path(name: str, split: str) -> Source:
    path = Path(name)
    try:
        if path.is_dir():
            return _from_folder(path, name, split)
        if not path.is_file():
            return _from_hub(name, split)
        ending = next((e for e in sorted(_ENDINGS, key=len, reverse=True) if path.name.lower().endswith(e)), None)
        if not ending:
            raise DataError(f"{name}: unknown ending '{path.suffix}', expected one of {', '.join(_ENDINGS)}")
        if not path.stat().st_size:
            raise DataError(f"{name}: no records in it, the file is empty")
        if ending == ".parquet":
            return Source(name, "row", _parquet_rows(path, name))
        file = path.open("rb")
        _refuse_other_encodings(file, name, ending)
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror})") from None
    if ending == ".json":
        return Source(name, "record", _array_rows(file, name))
    rows = _table_rows(file, name) if ending == ".csv" else _line_rows(file, compressed=ending.endswith(".gz"))
    return Source(name, "line", rows)


def _refuse_other_encodings(file: BinaryIO, name: str, ending: str) -> None:
    start = file.read(4)
    file.seek(0)
    compressed = start[:2] == b"\x1f\x8b"
    if ending.endswith(".gz") and not compressed:
        file.close()
        raise DataError(f"{name}: not gzip, though its name says so; without .gz it is read as it is")
    if compressed and not ending.endswith(".gz"):
        file.close()
        raise DataError(f"{name}: compressed by gzip; name it {Path(name).name}.gz, or unpack it")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or start == b"\0\0\xfe\xff":
        file.close()
        width = 32 if start in (b"\xff\xfe\0\0", b"\0\0\xfe\xff") else 16
        raise DataError(f"{name}: encoded as UTF-{width}, expected UTF-8; iconv -f UTF-{width} -t UTF-8 converts it")


# ---- lines of text ----


def _chunks(file: BinaryIO, *, compressed: bool) -> Iterator[bytes | RowError]:
    """About a MiB at a time, and at last what is wrong, if reading fails: what came before is not lost."""
    gathered: list[bytes] = []
    error = None
    with file, gzip.open(file) if compressed else file as stream:
        while True:
            try:
                piece = stream.read1(_CHUNK)  # type: ignore[union-attr]
            except (EOFError, OSError, zlib.error) as failed:
                error, piece = _reading_error(failed), b""
            gathered.append(piece)
            if not piece or sum(map(len, gathered)) >= _CHUNK:
                yield b"".join(gathered)
                gathered.clear()
            if not piece:
                break
    if error:
        yield error


def _lines(file: BinaryIO, *, compressed: bool = False) -> Iterator[tuple[int, bytes | RowError]]:
    """Of bytes, and so at line ends alone: str.splitlines would also cut a text at U+2028."""
    number, rest, dropped = 0, b"", 0
    for chunk in _chunks(file, compressed=compressed):
        if isinstance(chunk, RowError):
            yield number + 1, chunk
            return
        lines = (rest + chunk).splitlines(keepends=True)
        # A line that ends with \r may end with \r\n, half of which is in the next chunk.
        rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        for line in lines:
            number += 1
            yield number, _too_long() if dropped or len(line) > _LONGEST else line
            dropped = 0
        if dropped + len(rest) > _LONGEST:
            dropped, rest = dropped + len(rest), b""
        if dropped > _GIVE_UP:
            yield number + 1, _too_long(_UNREAD)
            return
    if rest or dropped:
        yield number + 1, _too_long() if dropped else rest


def _reading_error(error: Exception) -> RowError:
    if isinstance(error, EOFError):
        return RowError("the compressed data end too soon", "; the file is not whole, fetch it again")
    if isinstance(error, zlib.error | gzip.BadGzipFile):
        return RowError("the compressed data are damaged", f" ({one_line(error)}); fetch the file again")
    return RowError("cannot be read", f" ({one_line(error)})")


def _too_long(detail: str = "") -> RowError:
    return RowError(f"a line of more than {_LONGEST >> 20} MiB", detail or ", expected one record")


def _decoded(line: bytes) -> str:
    try:
        return line.decode().removeprefix("\ufeff")  # a byte-order mark is no harm
    except UnicodeDecodeError as error:
        detail = f" (byte 0x{line[error.start]:02x} at {error.start}: {error.reason}); save the file as UTF-8"
        raise RowError("not UTF-8", detail) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowError("a field stands twice", f": {repr(twice)[:40]}; which one is meant is not known")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _parsed(text: str, expected: str) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise RowError(
            "not JSON", f" ({error.msg.removesuffix(' at')} at character {error.pos + 1}); {expected}"
        ) from None
    except RecursionError:
        raise RowError("not readable JSON", " (nested too deeply)") from None
    except ValueError:
        raise RowError("not readable JSON", " (a number of thousands of digits)") from None


def _line_rows(file: BinaryIO, *, compressed: bool) -> Iterator[tuple[int, Any]]:
    for number, line in _lines(file, compressed=compressed):
        if isinstance(line, RowError):
            yield number, line
        elif line.strip():
            try:
                row = _parsed(_decoded(line), "expected one object a line")
            except RowError as error:
                row = error
            if isinstance(row, list):
                row = RowError("a list, expected an object", "; a file that is one JSON array is named .json")
            yield number, row


def _array_rows(file: BinaryIO, name: str) -> Iterator[tuple[int, Any]]:
    with file:
        try:
            content = file.read()
        except OSError as error:
            raise DataError(f"{name}: cannot be read ({error.strerror})") from None
    try:
        rows = _parsed(_decoded(content), "expected an array of objects; a file of one object a line is named .jsonl")
    except RowError as error:
        raise DataError(f"{name}: {error}") from None
    if not isinstance(rows, list):
        raise DataError(f"{name}: not an array of objects; a file of one object a line is named .jsonl")
    yield from enumerate(rows)


def _table_rows(file: BinaryIO, name: str) -> Iterator[tuple[int, Any]]:
    def texts() -> Iterator[str]:
        for _, line in _lines(file):
            if isinstance(line, RowError):
                raise line
            yield _decoded(line)

    table = csv.reader(texts(), strict=True)
    header: list[str] = []
    while True:
        number = table.line_num + 1
        try:
            cells = next(table, None)
        except csv.Error as error:
            yield number, RowError("not CSV", f" ({one_line(error)}){_UNREAD}")
            return
        except RowError as error:
            number = max(number, table.line_num + 1)
            yield number, RowError(error.kind, error.detail.removesuffix(_UNREAD) + _UNREAD)
            return
        if cells is None:
            return
        if not header:
            header = _checked_header(cells, name, number)
        elif len(cells) == len(header):
            yield number, dict(zip(header, map(_cell, header, cells), strict=True))
        elif cells:
            yield number, RowError("not as many cells as the header", f": {len(cells)}, expected {len(header)}")


def _checked_header(cells: list[str], name: str, number: int) -> list[str]:
    # What stands there is not shown: without a header it is data.
    if not cells:
        return []
    if not set(cells) & set(FIELDS):
        raise DataError(f"{name}, line {number}: no header, expected the columns' names, as prompt,chosen,rejected")
    for cell in cells:
        if cells.count(cell) > 1:
            raise DataError(f"{name}, line {number}: the header has a column {repr(cell)[:40]} twice")
    return cells


def _cell(column: str, text: str) -> Any:
    if column in ("completions", "rewards"):
        with suppress(RowError):  # the text itself is refused later, as no list
            return _parsed(text, "")
    return text


# ---- columns ----


def _needs(name: str, package: str, before: str = "") -> NoReturn:
    raise DataError(
        f"{name}: {before}reading it needs {package}: pip install 'dapedu[data]'; in a copy of the project: "
        "pip install '.[data]'"
    ) from None


def _parquet_rows(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        _needs(name, "pyarrow")
    try:
        file = parquet.ParquetFile(path)
        columns = file.schema_arrow.names
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{name}: not a whole Parquet file ({one_line(error)})") from None
    return _parquet_batches(file, columns, pyarrow.ArrowException)


def _parquet_batches(file: Any, columns: list[str], error_of_library: type[Exception]) -> Iterator[tuple[int, Any]]:
    known, others = _columns(columns)
    position = 0
    with file:
        batches = file.iter_batches(batch_size=_BATCH, columns=known)
        while True:
            try:
                batch = next(batches, None)
                rows = [] if batch is None else batch.to_pylist()
            except (error_of_library, OSError, ValueError, OverflowError) as error:
                yield position, RowError("the Parquet file is damaged", f" from here on ({one_line(error)})")
                return
            if batch is None:
                return
            # Of a file without a known column the batches have no rows.
            for row in rows if known else [{}] * batch.num_rows:
                yield position, row | others
                position += 1


def _columns(names: Iterable[str]) -> tuple[list[str], dict[str, None]]:
    """The columns to read, and the others, which are named when one is missing."""
    return [name for name in names if name in FIELDS], {name: None for name in names if name not in FIELDS}


def _from_dataset(name: str, dataset: Any, split: str) -> Source:
    if isinstance(dataset, dict):
        if split not in dataset:
            raise DataError(f"{name}: no split {split!r}; there are {', '.join(dataset) or 'none'}")
        dataset = dataset[split]
    return Source(name, "row", _dataset_rows(dataset))


def _dataset_rows(dataset: Any) -> Iterator[tuple[int, Any]]:
    import pyarrow

    known, others = _columns(dataset.column_names)
    if not known:
        yield from ((position, others) for position in range(len(dataset)))
        return
    dataset = dataset.with_format(None).select_columns(known)
    for start in range(0, len(dataset), _BATCH):
        try:
            batch = dataset[start : start + _BATCH]
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
            yield start, RowError("the dataset is damaged", f" from here on ({one_line(error)})")
            return
        for offset, values in enumerate(zip(*(batch[column] for column in known), strict=True)):
            yield start + offset, dict(zip(known, values, strict=True)) | others


def _from_folder(path: Path, name: str, split: str) -> Source:
    if not (path / "dataset_dict.json").is_file() and not (path / "state.json").is_file():
        raise DataError(f"{name}: a folder, expected a file, or a folder that Dataset.save_to_disk wrote")
    try:
        import datasets
        import pyarrow
    except ModuleNotFoundError:
        _needs(name, "datasets")
    try:
        dataset = datasets.load_from_disk(path)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{name}: not a whole folder of Dataset.save_to_disk ({one_line(error)})") from None
    return _from_dataset(name, dataset, split)


def _from_hub(name: str, split: str) -> Source:
    if not _HUB_NAME.fullmatch(name) or name.lower().endswith((*_ENDINGS, ".gz")):
        raise DataError(f"{name}: there is no such file")
    repository, _, config = name.partition(":")
    if (folder := Path(repository).parent).is_dir():  # a slip of the pen, which the hub need not be asked about
        raise DataError(f"{name}: there is no such file, nor folder, in the folder {folder}")
    try:
        import datasets
    except ModuleNotFoundError:
        _needs(name, "datasets", "there is no such file; if a dataset on the hub is meant, ")
    try:
        dataset = datasets.load_dataset(repository, config or None, split=split)
    except FileNotFoundError:  # datasets' own errors of this sort among them
        raise DataError(f"{name}: there is no such file, and no such dataset on the hub that may be read") from None
    except ConnectionError:
        raise DataError(f"{name}: there is no such file, and the hub cannot be reached to ask for a dataset") from None
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}, split {split!r}: the hub's dataset cannot be loaded ({one_line(error)})") from None
    return _from_dataset(name, dataset, split)
