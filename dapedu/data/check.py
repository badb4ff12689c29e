"""What a source of records holds: what can be used, how long it is, what repeats, contradicts and leaks."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dapedu.data.formats import Kind, Messages, Record, guess_kind
from dapedu.data.records import Records, open_rows, scan
from dapedu.data.sources import DataError, RowError, Source, place
from dapedu.data.templates import render
from dapedu.data.tokens import beginning_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dapedu.data.sources import Readable

_BATCH = 1000  # records that are tokenised at once
_PEEK = 1000  # rows in which a field must tell the kind
_WIDTH = 99  # characters of a line of the report


class Lengths(NamedTuple):
    """How long the texts of a field are, in characters or tokens; each number is that of a text."""

    median: int
    most: int  # 90 % are no longer
    nearly_all: int  # 99 % are no longer
    longest: int


class Problem(NamedTuple):
    """Rows that cannot be used for one reason."""

    positions: list[int]
    first: str  # the first one's place and message


@dataclass(frozen=True)
class Report:
    """What `check_records` found; positions are those of the source. `str` of it is a table."""

    source: str
    unit: str  # what a position counts: line, row, record; "" for a list
    kind: Kind
    rows: int
    usable: Records  # in canonical form, as the loaders return them
    forms: Mapping[str, int]  # format → usable records in it
    problems: Mapping[str, Problem]  # kind → the rows that cannot be used
    characters: Mapping[str, Lengths]  # field → of usable records; of a conversation, all its messages'
    tokens: Mapping[str, Lengths]  # the same with a tokenizer; completions count their end-of-sequence token
    chosen_longer: float | None  # share of preferences whose chosen completion has more characters
    chosen_shorter: float | None
    repeated_records: list[int]  # positions of records that stood there before
    repeated_prompts: list[int]
    contradictions: list[tuple[int, int]]  # a pair, and an earlier one with the opposite choice
    equal_rewards: list[int]  # rankings that rank nothing
    max_length: int | None
    prompts_cut: list[int]  # examples whose prompt loses its beginning at max_length
    completions_too_long: int  # completions that max_length tokens cannot hold with a token of their prompt
    held_out: str | None
    shared_prompts: list[tuple[int, int]]  # position here, position in held_out

    def __str__(self) -> str:
        return self.table()

    def table(self, *, listed: int = 5) -> str:
        """The report as aligned text, without any text of the data.

        Args:
            listed: positions shown of each sort.

        Returns:
            Lines of less than 100 characters.
        """
        named = self.source if len(self.source) <= 60 else "…" + self.source[-59:]
        lines = [f"{named}: {self.kind}"]
        lines += [f"  {count:>9,}  {form}" for form, count in self.forms.items()]
        lines += [_row("usable", len(self.usable), f"of {self.rows:,}")]
        lines += [_row("not usable", self.rows - len(self.usable))]
        for kind, problem in self.problems.items():
            lines += [_row(f"  {kind}", len(problem.positions), self._places(problem.positions, listed))]
            lines += [f"      {problem.first}"] if not problem.first.endswith(kind) else []
        for unit, lengths in (("characters", self.characters), ("tokens", self.tokens)):
            if lengths:
                lines += [f"{unit:22}{'median':>10}{'90 %':>10}{'99 %':>10}{'longest':>10}"]
                lines += [f"  {name:20}" + "".join(f"{n:>10,}" for n in of) for name, of in lengths.items()]
        if self.chosen_longer is not None and self.chosen_shorter is not None:
            shares = f"{self.chosen_longer:.1%} of pairs; shorter in {self.chosen_shorter:.1%}"
            lines += [f"chosen longer than rejected in {shares.replace('%', ' %')}"]
        lines += [
            _row("the same record again", len(self.repeated_records), self._places(self.repeated_records, listed))
        ]
        lines += [
            _row("the same prompt again", len(self.repeated_prompts), self._places(self.repeated_prompts, listed))
        ]
        if self.kind == "preferences":
            here = self._pairs(self.contradictions, listed, "and")
            lines += [_row("contradicting pairs", len(self.contradictions), here)]
        if self.kind == "rankings":
            lines += [_row("all rewards equal", len(self.equal_rewards), self._places(self.equal_rewards, listed))]
        if self.max_length is not None:
            lines += [f"in {self.max_length:,} tokens"]
            lines += [_row("  prompts cut", len(self.prompts_cut), self._places(self.prompts_cut, listed))]
            lines += [_row("  completions too long", self.completions_too_long)]
        if self.held_out is not None:
            here = self._pairs(self.shared_prompts, listed, "as its")
            lines += [_row("prompts held out too", len(self.shared_prompts), here)]
        lines = "\n".join(lines).splitlines()
        return "\n".join(line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…" for line in lines)

    def _places(self, positions: Sequence[int], listed: int) -> str:
        if not positions or not listed:
            return ""
        shown = [str(position) for position in positions[:listed]] + ["…"] * (len(positions) > listed)
        return f"{self.unit or 'record'}{'s' if len(positions) > 1 else ''} {', '.join(shown)}"

    def _pairs(self, pairs: Sequence[tuple[int, int]], listed: int, between: str) -> str:
        if not pairs or not listed:
            return ""
        shown = [f"{one} {between} {other}" for one, other in pairs[:listed]] + ["…"] * (len(pairs) > listed)
        return f"{self.unit or 'record'}s {', '.join(shown)}"


def check_records(
    source: Readable,
    *,
    kind: Kind | None = None,
    split: str = "train",
    held_out: Readable | None = None,
    held_out_split: str = "train",
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
    progress: bool = False,
) -> Report:
    """Read a whole source, usable or not, and say what it holds.

    Args:
        source: as `read_source` reads it.
        kind: of the records; None takes what the fields suggest.
        split: of a dataset that has several.
        held_out: records of any kind whose prompts should not be among the source's.
        held_out_split: of a dataset that has several.
        tokenizer: counts tokens, and renders conversations by its chat template.
        max_length: tokens of prompt, completion and end together. Training drops tokens from a prompt's beginning until
            the longest of its completions fits; one that does not fit with a single token of the prompt is unusable.
        progress: whether to show a bar.

    Returns:
        `Report`.

    Raises:
        DataError: nothing can be read, or no field tells the kind.
        ValueError: max_length is given without a tokenizer, or leaves no room.
    """
    if max_length is not None and (tokenizer is None or max_length < 2):
        raise ValueError(f"check_records: max_length is {max_length}, expected at least 2, and a tokenizer beside it")
    opened = open_rows(source, split)
    beside = None if held_out is None else open_rows(held_out, held_out_split)
    kind, rows = (kind, opened.rows) if kind else _guessed(opened)
    survey = _Survey(opened, kind)
    survey.read(_with_bar(rows, opened.name, progress), tokenizer)
    tokens: dict[str, Lengths] = {}
    cut: list[int] = []
    too_long = 0
    if tokenizer is not None:
        tokens, cut, too_long = survey.count_tokens(tokenizer, max_length, progress)
    records, positions = survey.records, survey.positions
    longer, shorter = _compared(records) if kind == "preferences" and records else (None, None)
    return Report(
        source=opened.name,
        unit=opened.unit,
        kind=kind,
        rows=survey.rows,
        usable=Records(records, source=opened.name, unit=opened.unit, positions=positions),
        forms=Counter(survey.forms),
        problems=dict(sorted(survey.problems.items(), key=lambda item: -len(item[1].positions))),
        characters=_characters(records),
        tokens=tokens,
        chosen_longer=longer,
        chosen_shorter=shorter,
        repeated_records=_repeated(map(_key, records), positions),
        repeated_prompts=_repeated((_key(record["prompt"]) for record in records), positions),
        contradictions=_contradictions(records, positions) if kind == "preferences" else [],
        equal_rewards=_equal_rewards(records, positions) if kind == "rankings" else [],
        max_length=max_length,
        prompts_cut=cut,
        completions_too_long=too_long,
        held_out=None if beside is None else beside.name,
        shared_prompts=[] if beside is None else _shared(records, positions, beside),
    )


class _Survey:
    """The usable records so far, side by side with their positions and texts, and what is wrong with the others."""

    def __init__(self, source: Source, kind: Kind) -> None:
        self.source, self.kind = source, kind
        self.rows = 0
        self.records: list[Record] = []
        self.positions: list[int] = []
        self.forms: list[str] = []
        self.texts: list[Record] = []  # the records as text
        self.problems: dict[str, Problem] = {}

    def read(self, rows: Iterable[tuple[int, Any]], tokenizer: PreTrainedTokenizerBase | None) -> None:
        for position, record, form, error in scan(rows, self.kind):
            self.rows += 1
            text = record
            if record is not None and tokenizer is not None:
                try:
                    text = render(record, tokenizer)
                except RowError as refused:
                    record, error = None, refused
            if record is not None and text is not None:
                self.records.append(record)
                self.positions.append(position)
                self.forms.append(form)
                self.texts.append(text)
            elif error is not None:
                self.refuse(position, error)
        if not self.rows:
            raise DataError(f"{self.source.name}: no records in it")

    def refuse(self, position: int, error: RowError) -> None:
        first = f"{self.source.unit or 'record'} {position}: {error}"
        self.problems.setdefault(error.kind, Problem([], first)).positions.append(position)

    def count_tokens(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int | None, progress: bool
    ) -> tuple[dict[str, Lengths], list[int], int]:
        """Lengths a field, positions of prompts that are cut, completions that do not fit; drops their records."""
        counted: dict[str, list[int]] = {}
        kept: list[int] = []
        cut: list[int] = []
        too_long = 0
        least = len(beginning_of(tokenizer)) + 1  # of a prompt
        starts = range(0, len(self.texts), _BATCH)
        for start in _with_bar(starts, "tokens, in thousands", progress):
            for index, ids in enumerate(_token_ids(self.texts[start : start + _BATCH], tokenizer), start):
                lengths = {field: list(map(len, each)) for field, each in ids.items()}
                for field, numbers in lengths.items():
                    counted.setdefault(field, []).extend(numbers)
                prompt = lengths["prompt"][0]
                completions = [n for field, numbers in lengths.items() if field != "prompt" for n in numbers]
                if problem := _nothing_to_learn(ids):
                    self.refuse(self.positions[index], RowError(problem))
                    continue
                if max_length is not None:
                    beyond = sum(least + n > max_length for n in completions)
                    too_long += beyond
                    if beyond:
                        detail = f": {max(completions):,} with its end"
                        kind = f"a completion does not fit in {max_length:,} tokens"
                        self.refuse(self.positions[index], RowError(kind, detail))
                        continue
                    if prompt + max(completions) > max_length:
                        cut.append(self.positions[index])
                kept.append(index)
        self.records = [self.records[index] for index in kept]
        self.positions = [self.positions[index] for index in kept]
        self.forms = [self.forms[index] for index in kept]
        return {field: _lengths(numbers) for field, numbers in counted.items()}, cut, too_long


def _guessed(source: Source) -> tuple[Kind, Iterator[tuple[int, Any]]]:
    seen = []
    for position, row in itertools.islice(source.rows, _PEEK):
        seen.append((position, row))
        if kind := guess_kind(row):
            return kind, itertools.chain(seen, source.rows)
    if not seen:
        raise DataError(f"{source.name}: no records in it")
    position, row = seen[0]
    problem = row if isinstance(row, RowError) else "neither chosen, completion, completions nor messages"
    raise DataError(f"{place(source.name, source.unit, position)}: {problem}; so its kind is not known")


def _with_bar(things: Iterable[Any], name: str, progress: bool) -> Iterable[Any]:
    if not progress:
        return things
    from tqdm import tqdm

    # Only where it takes longer than a second, and where someone looks.
    return tqdm(things, desc=name[-40:], unit=" records", delay=1, leave=False, disable=None)


def _texts_of(record: Record) -> Iterator[tuple[str, list[Any]]]:
    for field, value in record.items():
        if field == "completions":
            yield field, value
        elif field != "rewards":
            yield field, [value]


def _token_ids(texts: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, list[list[int]]]]:
    """Tokens of each field of each record; prompts begin and completions end as `encode` has them."""
    flat = [text for record in texts for _, values in _texts_of(record) for text in values]
    tails = iter(tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"])
    begin, end = beginning_of(tokenizer), tokenizer.eos_token_id

    def whole(field: str) -> list[int]:
        ids = next(tails)
        if field != "prompt":
            return ids if end in ids else [*ids, end]
        return ids if not ids or ids[:1] == begin else [*begin, *ids]

    return [{field: [whole(field) for _ in values] for field, values in _texts_of(record)} for record in texts]


def _nothing_to_learn(ids: Mapping[str, list[list[int]]]) -> str:
    """What the texts do not show, the tokens may: a tokenizer normalises, and has one token for all that it lacks."""
    if not ids["prompt"][0]:
        return "`prompt` has no tokens"
    for field, completions in ids.items():
        if field != "prompt" and min(map(len, completions)) < 2:
            return f"`{field}` has no tokens but its end"
    compared = ids.get("completions") or [*ids.get("chosen", []), *ids.get("rejected", [])]
    if compared and all(each == compared[0] for each in compared):
        return (
            "`completions` have the same tokens"
            if "completions" in ids
            else "`chosen` and `rejected` have the same tokens"
        )
    return ""


def _characters(records: Sequence[Record]) -> dict[str, Lengths]:
    counted: dict[str, list[int]] = {}
    for record in records:
        for field, values in _texts_of(record):
            counted.setdefault(field, []).extend(map(_size, values))
    return {field: _lengths(numbers) for field, numbers in counted.items()}


def _size(value: str | Messages) -> int:
    return len(value) if isinstance(value, str) else sum(len(message["content"]) for message in value)


def _lengths(numbers: Sequence[int]) -> Lengths:
    return Lengths(*np.quantile(numbers, [0.5, 0.9, 0.99, 1], method="inverted_cdf").astype(int).tolist())


def _compared(records: Sequence[Record]) -> tuple[float, float]:
    more = [_size(record["chosen"]) - _size(record["rejected"]) for record in records]
    return sum(n > 0 for n in more) / len(more), sum(n < 0 for n in more) / len(more)


def _key(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _repeated(keys: Iterable[str], positions: Sequence[int]) -> list[int]:
    seen: set[str] = set()
    again = []
    for key, position in zip(keys, positions, strict=True):
        if key in seen:
            again.append(position)
        seen.add(key)
    return again


def _contradictions(records: Sequence[Record], positions: Sequence[int]) -> list[tuple[int, int]]:
    seen: dict[tuple[str, str, str], int] = {}
    pairs = []
    for record, position in zip(records, positions, strict=True):
        prompt, chosen, rejected = (_key(record[field]) for field in ("prompt", "chosen", "rejected"))
        if (prompt, rejected, chosen) in seen:
            pairs.append((position, seen[prompt, rejected, chosen]))
        seen.setdefault((prompt, chosen, rejected), position)
    return pairs


def _equal_rewards(records: Sequence[Record], positions: Sequence[int]) -> list[int]:
    return [p for record, p in zip(records, positions, strict=True) if len(set(record["rewards"])) == 1]


def _shared(records: Sequence[Record], positions: Sequence[int], held_out: Source) -> list[tuple[int, int]]:
    kind, rows = _guessed(held_out)
    there: dict[str, int] = {}
    for position, record, _, _ in scan(rows, kind):
        if record is not None:
            there.setdefault(_normalised(record["prompt"]), position)
    if not there:
        raise DataError(f"{held_out.name}: no {kind} in it that can be used")
    prompts = (_normalised(record["prompt"]) for record in records)
    return [(position, there[own]) for own, position in zip(prompts, positions, strict=True) if own in there]


def _normalised(prompt: str | Messages) -> str:
    """White space is no difference: the same prompt often differs in it from file to file."""
    if isinstance(prompt, str):
        return " ".join(prompt.split())
    return json.dumps([[message["role"], " ".join(message["content"].split())] for message in prompt])


def _row(name: str, count: int, remark: str = "") -> str:
    first, *more = textwrap.wrap(remark, _WIDTH - 64) or [""]
    return "\n".join([f"{name:52}{count:>10,}  {first}".rstrip(), *(" " * 64 + line for line in more)])
