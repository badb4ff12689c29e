"""Files that are broken in every way we know, and in thousands of random ways: never anything but a DataError."""

import copy
import csv
import gzip
import json
import math
import random
import re
import time
import zlib
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from dapedu.data import DataError, load_demonstrations, load_preferences, load_rankings

LOADERS = {"demonstrations": load_demonstrations, "preferences": load_preferences, "rankings": load_rankings}


def line(**record) -> bytes:
    return json.dumps(record).encode() + b"\n"


def says(role: str, content) -> dict:
    return {"role": role, "content": content}


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
TALK = {"prompt": [says("user", "a")], "chosen": [says("assistant", "b")], "rejected": [says("assistant", "c")]}
RANKING = {"prompt": "a", "completions": ["b", "c"], "rewards": [1, -0.5]}
DEMONSTRATION = {"prompt": "a", "completion": "b"}
HUMAN, TURN = "\n\nHuman: ", "\n\nAssistant:"
PARQUET = pyarrow.BufferOutputStream()
parquet.write_table(pyarrow.Table.from_pylist([PAIR] * 50), PARQUET)
PARQUET = PARQUET.getvalue().to_pybytes()
OTHER_PARQUET = pyarrow.BufferOutputStream()
parquet.write_table(pyarrow.table({"question": ["a"], "answer": ["b"]}), OTHER_PARQUET)
OTHER_PARQUET = OTHER_PARQUET.getvalue().to_pybytes()


def bomb(size: int) -> bytes:
    """A gzip file of one line."""
    press = zlib.compressobj(1, wbits=31)
    piece = b"a" * (1 << 20)
    return press.compress(b'{"prompt": "') + b"".join(press.compress(piece) for _ in range(size >> 20)) + press.flush()


# ---- a file's own troubles: name, content, what is said after the file's name ----

FILES = {
    "empty": ("x.jsonl", b"", ": no records in it"),
    "empty, compressed": ("x.jsonl.gz", gzip.compress(b""), ": no records in it"),
    "blank lines": ("x.jsonl", b"\n \n\t\n", ": no records in it"),
    "an empty array": ("x.json", b"[]", ": no records in it"),
    "header only": ("x.csv", b"prompt,chosen,rejected\n", ": no records in it"),
    "unknown ending": ("x.txt", line(**PAIR), ": unknown ending '.txt', expected one of .jsonl, .jsonl.gz"),
    "no ending": ("x", line(**PAIR), ": unknown ending ''"),
    "truncated gzip": (
        "x.jsonl.gz",
        gzip.compress(line(**PAIR) * 9)[:-9],
        ", line 10: the compressed data end too soon",
    ),
    "damaged gzip": ("x.jsonl.gz", gzip.compress(line(**PAIR))[:-8] + b"12345678", "the compressed data are damaged"),
    "noise as gzip": ("x.jsonl.gz", b"\x1f\x8b" + bytes(range(200)), ", line 1: the compressed data are damaged"),
    "not gzip": ("x.jsonl.gz", line(**PAIR), ": not gzip, though its name says so"),
    "gzip unnamed": ("x.jsonl", gzip.compress(line(**PAIR)), ": compressed by gzip; name it x.jsonl.gz"),
    "UTF-16": ("x.jsonl", line(**PAIR).decode().encode("utf-16"), ": encoded as UTF-16, expected UTF-8"),
    "UTF-32": ("x.jsonl", line(**PAIR).decode().encode("utf-32"), ": encoded as UTF-32, expected UTF-8"),
    "UTF-16 table": ("x.csv", "prompt,chosen".encode("utf-16"), ": encoded as UTF-16, expected UTF-8"),
    "not UTF-8": ("x.jsonl", line(**PAIR) + b'{"prompt": "\xe9"}', ", line 2: not UTF-8 (byte 0xe9 at 12"),
    "not UTF-8, array": ("x.json", b'[{"prompt": "\xe9"}]', ": not UTF-8 (byte 0xe9 at 13"),
    "not UTF-8, table": ("x.csv", b"prompt,chosen,rejected\na,b,c\n\xe9,b,c\n", ", line 3: not UTF-8 (byte 0xe9"),
    "not JSON": ("x.jsonl", line(**PAIR) + b"{'prompt': 1}\n", ", line 2: not JSON (Expecting property name"),
    "cut off": ("x.jsonl", line(**PAIR) + line(**PAIR)[:-5], ", line 2: not JSON (Expecting value at character 4"),
    "array in a line": ("x.jsonl", b"[" + line(**PAIR).strip() + b"]", ", line 1: a list, expected an object"),
    "not JSON, array": ("x.json", b'[{"prompt": "a"},]', ": not JSON ("),
    "lines, not an array": ("x.json", line(**PAIR) * 2, ": not JSON (Extra data"),
    "object, not an array": ("x.json", line(**PAIR), ": not an array of objects"),
    "array of arrays": ("x.json", b"[[1], [2]]", ", record 0: a list, expected an object"),
    "long line": ("x.jsonl", line(**PAIR) + b'{"prompt": "' + b"a" * (11 << 20), ", line 2: a line of more than 10"),
    "bomb": ("x.jsonl.gz", bomb(2 << 30), ", line 1: a line of more than 10 MiB; what follows was not read"),
    "long table": (
        "x.csv",
        b"prompt,chosen\n" + b"a" * (11 << 20),
        ", line 2: a line of more than 10 MiB, expected one record; what follows",
    ),
    "no header": ("x.csv", b"a,b,c\nd,e,f\n", ", line 1: no header, expected the columns' names"),
    "header twice": ("x.csv", b"prompt,chosen,chosen\na,b,c\n", ", line 1: the header has a column 'chosen' twice"),
    "too few cells": (
        "x.csv",
        b"prompt,chosen,rejected\na,b\n",
        ", line 2: not as many cells as the header: 2, expected 3",
    ),
    "too many cells": (
        "x.csv",
        b"prompt,chosen,rejected\na,b,c\na,b,c,d\n",
        ", line 3: not as many cells as the header: 4",
    ),
    "unclosed quote": ("x.csv", b'prompt,chosen,rejected\na,b,c\na,"b,c\nd,e,f\n', ", line 3: not CSV (unexpected end"),
    "stray quote": ("x.csv", b'prompt,chosen,rejected\na,"b"b,c\n', ", line 2: not CSV ("),
    "huge cell": ("x.csv", b"prompt,chosen,rejected\na,b," + b"c" * 200_000, ", line 2: not CSV (field larger than"),
    "table without a column": (
        "x.csv",
        b"prompt,chosen\na,b\n",
        ", line 2: no `rejected`; there are 'prompt', 'chosen'",
    ),
    "noise as Parquet": ("x.parquet", bytes(range(256)), ": not a whole Parquet file ("),
    "truncated Parquet": ("x.parquet", PARQUET[:-20], ": not a whole Parquet file ("),
    "other columns": ("x.parquet", OTHER_PARQUET, ", row 0: no `chosen`; there are 'question', 'answer'"),
}


@pytest.mark.parametrize("trouble", FILES)
def test_a_broken_file(trouble, tmp_path):
    """Oracle: the place, and the words; a second at most, whatever the file would grow to."""
    name, content, message = FILES[trouble]
    path = tmp_path / name
    path.write_bytes(content)
    start = time.perf_counter()
    with pytest.raises(DataError) as error:
        load_preferences(path)
    assert time.perf_counter() - start < 1
    assert str(error.value).startswith(f"{path}{message}" if message[0] in ":," else f"{path}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_file(tmp_path):
    """Oracle: the words."""
    for name, message in {
        "none.jsonl": "there is no such file",
        "": "a folder, expected a file, or a folder that Dataset",
        "none\0.jsonl": "there is no such file",
        f"{'a' * 300}.jsonl": "cannot be read (File name too long)",
    }.items():
        with pytest.raises(DataError) as error:
            load_preferences(f"{tmp_path}/{name}")
        assert message in str(error.value)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(DataError, match="not a whole folder of"):
        load_preferences(tmp_path)
    with pytest.raises(DataError, match="int as a source of records; expected a path"):
        load_preferences(7)


# ---- a record's troubles ----

ROWS = [
    ("preferences", b"7", "a number, expected an object"),
    ("preferences", b'"a"', "text, expected an object"),
    ("preferences", b"null", "null, expected an object"),
    ("preferences", b"{}", "no `chosen`; there are no fields"),
    ("preferences", line(prompt="a", chosen="b"), "no `rejected`; there are 'prompt', 'chosen'"),
    ("preferences", line(**{f"column {n}": 1 for n in range(30)}), "'column 11', …"),
    ("preferences", line(**PAIR | {"prompt": ""}), "`prompt` is empty"),
    ("preferences", line(**PAIR | {"chosen": " \n"}), "`chosen` is empty"),
    ("preferences", line(**PAIR | {"rejected": "\u3000"}), "`rejected` is empty"),
    ("preferences", line(**PAIR | {"target": ""}), "`target` is empty"),
    ("preferences", line(**PAIR | {"target": "d"}), "`target` is in some records only: the first record has none"),
    (
        "preferences",
        line(prompt="Is it?", chosen="Is it? Yes", rejected="Is it? "),
        "`rejected` is empty: only the prompt stands there",
    ),
    ("preferences", line(**PAIR | {"prompt": None}), "`prompt` is null, expected text or a list of messages"),
    ("preferences", line(**PAIR | {"chosen": True}), "`chosen` is true or false, expected text"),
    ("preferences", line(**PAIR | {"chosen": {"text": "b"}}), "`chosen` is an object, expected text"),
    ("preferences", line(**PAIR | {"chosen": "c"}), "`chosen` and `rejected` are the same"),
    ("preferences", rb'{"prompt": "\ud83d", "chosen": "b", "rejected": "c"}', "`prompt` has half a surrogate pair"),
    (
        "preferences",
        b'{"prompt": "a", "chosen": "b", "chosen": "b", "rejected": "c"}',
        "a field stands twice: 'chosen'",
    ),
    ("preferences", b'{"prompt": ' + b"1" * 5000 + b"}", "not readable JSON (a number of thousands of digits)"),
    ("preferences", b"[" * 100_000, "not readable JSON (nested too deeply)"),
    (
        "preferences",
        line(chosen="left", rejected="right"),
        "no `prompt`, and `chosen` and `rejected` have no beginning",
    ),
    ("preferences", line(chosen=" left", rejected=" right"), "have no beginning in common"),
    ("preferences", line(chosen=f"{HUMAN}a{TURN} b", rejected=f"{HUMAN}c{TURN} b"), "have no turn in common"),
    ("preferences", line(chosen=f"{HUMAN}a{TURN} b", rejected=f"{HUMAN}a{TURN}"), "`rejected` is empty"),
    ("preferences", line(**TALK | {"prompt": []}), "`prompt` is an empty conversation"),
    ("preferences", line(**TALK | {"prompt": [says("user", " ")]}), "`prompt` is empty"),
    ("preferences", line(**TALK | {"chosen": "b"}), "`chosen` and `rejected` differ in form"),
    ("preferences", line(**PAIR | {"prompt": TALK["prompt"]}), "`chosen` and `prompt` differ in form: text and conv"),
    ("preferences", line(**TALK | {"target": "b"}), "`target` and `prompt` differ in form"),
    ("preferences", line(**TALK | {"prompt": "a"}), "`chosen` and `rejected` have no first message in common"),
    ("preferences", line(**TALK | {"chosen": ["b"]}), "`chosen` is no list of messages: chosen[0] is text"),
    ("preferences", line(**TALK | {"chosen": [{"role": "assistant"}]}), "chosen[0] has no `content`"),
    ("preferences", line(**TALK | {"chosen": [{"from": "gpt", "value": "b"}]}), "chosen[0] has no `role`"),
    ("preferences", line(**TALK | {"chosen": [says("assistant", ["b"])]}), "`content` of chosen[0] is a list"),
    ("preferences", line(**TALK | {"chosen": [says("assistant", "")]}), "`chosen` is empty"),
    ("preferences", line(**TALK | {"chosen": [says("user", "b")]}), "`chosen` does not end with the assistant's"),
    ("demonstrations", line(prompt="a"), "no `completion`; there are 'prompt'"),
    ("demonstrations", line(completion="a"), "no `prompt`; there are 'completion'"),
    ("demonstrations", line(prompt="a", completion="  "), "`completion` is empty"),
    ("demonstrations", line(prompt="a", completion=TALK["chosen"]), "`completion` and `prompt` differ in form"),
    ("demonstrations", line(messages="a"), "`messages` is text, expected a list"),
    ("demonstrations", line(messages=[]), "`messages` is an empty conversation"),
    ("demonstrations", line(messages=TALK["chosen"]), "`messages` has no prompt"),
    ("demonstrations", line(messages=TALK["prompt"]), "`messages` does not end with the assistant's message"),
    ("rankings", line(completions=["a", "b"], rewards=[1, 2]), "no `prompt`"),
    ("rankings", line(prompt="a", rewards=[1, 2]), "no `completions`; there are 'prompt', 'rewards'"),
    ("rankings", line(**RANKING | {"completions": None}), "`completions` is not a list of texts"),
    ("rankings", line(**RANKING | {"completions": ["b", " "]}), "one of `completions` is empty (completions[1])"),
    ("rankings", line(**RANKING | {"completions": ["b", "b"]}), "`completions` are all the same"),
    (
        "rankings",
        line(**RANKING | {"completions": [[], []]}),
        "`completions` is an empty conversation (completions[0])",
    ),
    ("rankings", line(**RANKING | {"completions": [TALK["chosen"]] * 2}), "`completions` and `prompt` differ in form"),
    ("rankings", line(**RANKING | {"rewards": [1, float("nan")]}), "`rewards` is not a list of finite numbers"),
    ("rankings", line(**RANKING | {"rewards": [1, -float("inf")]}), "`rewards` is not a list of finite numbers"),
    ("rankings", line(**RANKING | {"rewards": [1, True]}), "`rewards` is not a list of finite numbers"),
    ("rankings", line(**RANKING | {"rewards": [1, "2"]}), "`rewards` is not a list of finite numbers"),
    ("rankings", line(**RANKING | {"rewards": [1, 10**400]}), "`rewards` is not a list of finite numbers"),
    ("rankings", line(**RANKING | {"rewards": [1]}), "are not k ≥ 2 of each: there are 2 and 1"),
    ("rankings", line(prompt="a", completions=["b"], rewards=[1]), "are not k ≥ 2 of each: there are 1 and 1"),
    ("rankings", line(prompt="a", completions=["b", "c", "d"], rewards=[1, 2, 3]), "differs in number: 3, the first"),
]
GOOD = {"preferences": line(**PAIR), "demonstrations": line(**DEMONSTRATION), "rankings": line(**RANKING)}


@pytest.mark.parametrize(("kind", "bad", "message"), ROWS, ids=range(len(ROWS)))
def test_a_broken_record(kind, bad, message, tmp_path):
    """Oracle: it stands in line 3, one of four, after a blank line; three others can be used."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD[kind] + b"\n" + bad.strip() + b"\n" + GOOD[kind] * 2)
    start = time.perf_counter()
    with pytest.raises(DataError) as error:
        LOADERS[kind](path)
    assert time.perf_counter() - start < 1
    assert str(error.value).startswith(f"{path}, line 3: ")
    assert message in str(error.value)
    assert str(error.value).endswith(
        f". `dapedu data check {path} --output CLEAN.jsonl` writes the records that can be used"
    )
    assert "\n" not in str(error.value)


def test_the_first_record_without_a_target_is_named(tmp_path):
    """Oracle: the line, where the first record has one."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(line(**PAIR | {"target": "d"}) * 2 + line(**PAIR))
    with pytest.raises(DataError, match="line 3: `target` is in some records only: the first record has one"):
        load_preferences(path)


def test_more_than_one_problem_is_counted_by_kind(tmp_path):
    """Oracle: counted by hand."""
    path = tmp_path / "a b.jsonl"
    empty, missing = line(**PAIR | {"chosen": ""}), line(prompt="a", chosen="b")
    path.write_bytes(line(**PAIR) + missing + empty + line(**PAIR) + empty + missing + b"{\n" + empty)
    with pytest.raises(DataError) as error:
        load_preferences(path)
    assert str(error.value) == (
        f"{path}, line 2: no `rejected`; there are 'prompt', 'chosen'. 5 more of 8 are no preferences either "
        f"(3 × `chosen` is empty, 1 × no `rejected`, 1 × not JSON). `dapedu data check '{path}'` lists them; with "
        "--output CLEAN.jsonl it writes the records that can be used"
    )


def test_a_line_that_is_too_long_does_not_hide_the_next(tmp_path):
    """Oracle: both lines' numbers; the file is read on after a line of 30 MiB."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(line(**PAIR) + b"a" * (30 << 20) + b"\r\n" + line(**PAIR) + b"{\n")
    with pytest.raises(DataError, match=r"line 2: a line of more than 10 MiB.*1 more of 4.*1 × not JSON"):
        load_preferences(path)


@pytest.mark.parametrize("separator", ["\0", "\x1c", "\u2028", "\ufeff", "\U0001f600"])
def test_odd_characters_are_text(separator, tmp_path):
    """Oracle: the record."""
    path = tmp_path / "x.jsonl"
    record = PAIR | {"chosen": f"b{separator}b"}
    path.write_bytes(line(**record))
    assert load_preferences(path) == [record]


# ---- random damage ----

LONG = f"{HUMAN}May I?{TURN} Yes.{HUMAN}Thank you.{TURN}"
ROWS_OF = {
    "preferences": [
        [PAIR | {"prompt": f"é {n}"} for n in range(4)],
        [{"chosen": f"{LONG} {n}", "rejected": f"{LONG} not {n}"} for n in range(4)],
        [TALK | {"target": TALK["chosen"]}] * 2,
        [{"chosen": "Is it? Yes", "rejected": "Is it? No"}] * 3,
        [{"prompt": "a", "chosen": TALK["prompt"] + TALK["chosen"], "rejected": TALK["prompt"] + TALK["rejected"]}] * 2,
    ],
    "demonstrations": [[DEMONSTRATION] * 3, [{"messages": TALK["prompt"] + TALK["chosen"]}] * 2, [PAIR] * 3],
    "rankings": [[RANKING] * 3, [RANKING | {"completions": ["b", "é", "d"], "rewards": [1, 2, 3]}] * 3],
}
CASES = {".jsonl": 1500, ".jsonl.gz": 800, ".json": 800, ".csv": 1000, ".parquet": 500}
STRANGE = [None, True, 0, -1.5, float("nan"), float("inf"), 10**400, "", " ", "\ud83d", "\0", [], {}, [[]], [{}]]
STRANGE += [["a"], {"role": "user"}, [says("user", "a")], [says("assistant", None)], [says("assistant", "")], "x" * 99]
STRANGE += [f"{HUMAN}a", f"{TURN} b", [says(None, "a")], ["b", None], [1, 2], ["b", "b"], TALK["prompt"] * 3, "[1"]


def written(rows: list[dict], ending: str) -> bytes:
    """The file that would hold these rows, if a good writer wrote them."""
    if ending == ".json":
        return json.dumps(rows).encode()
    if ending == ".csv":
        header = list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))
        lines: list[str] = []
        table = csv.writer(type("Lines", (), {"write": lambda _, text: lines.append(text)})())
        table.writerow(header)
        table.writerows([json.dumps(v) if isinstance(v, list | dict) else v for v in row.values()] for row in rows)
        return "".join(lines).encode("utf8", "replace")
    if ending == ".parquet":
        sink = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        return sink.getvalue().to_pybytes()
    content = b"".join(line(**row) if isinstance(row, dict) else json.dumps(row).encode() + b"\n" for row in rows)
    return gzip.compress(content, mtime=0) if ending.endswith("gz") else content


def twisted(rows: list[dict], chance: random.Random) -> list[dict]:
    """Rows of which some have strange values, lack a field or stand twice."""
    rows = copy.deepcopy(rows)
    for _ in range(chance.randint(1, 3)):
        row = chance.choice(rows)
        if not row:
            continue
        field = chance.choice(list(row))
        match chance.randrange(6):
            case 0 | 1:
                row[field] = copy.deepcopy(chance.choice(STRANGE))
            case 2:
                del row[field]
            case 3:
                rows.append(dict(row))
            case 4:
                row[chance.choice(["chosen", "target", "completions", "x"])] = row[field]
            case 5 if isinstance(row[field], list) and row[field]:
                row[field][chance.randrange(len(row[field]))] = copy.deepcopy(chance.choice(STRANGE))
    return rows


def damaged(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Bytes with a few of them lost, changed, doubled or taken from another file."""
    for _ in range(chance.randint(1, 3)):
        i, j = sorted(chance.randrange(len(content) + 1) for _ in range(2))
        match chance.randrange(7):
            case 0:
                content = content[:i]
            case 1 | 2 if content:
                flipped = bytearray(content)
                for _ in range(chance.choice([1, 1, 1, 8])):
                    flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
                content = bytes(flipped)
            case 3:
                content = content[:i] + content[j:]
            case 4:
                content = content[:j] + content[i:]
            case 5:
                content = content[:i] + other[chance.randrange(len(other)) :]
            case 6:
                piece = chance.choice(
                    [b"\n", b"\r", b'"', b",", b"{", b"]", b"\0", b"\xff", b"\xef\xbb\xbf", b"\\ud800"]
                )
                content = content[:i] + piece + content[i:]
    return content


HALVES = re.compile("[\ud800-\udfff]")


def outcome(load, path: Path) -> tuple[list, str]:
    try:
        return load(path), ""
    except DataError as error:
        return [], str(error)


def is_text(value) -> bool:
    return isinstance(value, str) and not value.isspace() and value != "" and not HALVES.search(value)


def is_talk(value, *, last: str | None = None) -> bool:
    if not isinstance(value, list) or not value:
        return False
    for message in value:
        if set(message) != {"role", "content"} or not all(isinstance(text, str) for text in message.values()):
            return False
        if HALVES.search("".join(message.values())):
            return False
    return last is None or (value[-1]["role"] == last and bool(value[-1]["content"].strip()))


def is_valid(record, kind: str) -> bool:
    """Written anew from the format's description; nothing of the package in it."""
    texts = {"demonstrations": ["completion"], "preferences": ["chosen", "rejected"], "rankings": ["completions"]}[kind]
    extra = {"rankings": {"rewards"}, "preferences": {"target"} & set(record)}.get(kind, set())
    if set(record) != {"prompt", *texts, *extra}:
        return False
    completions = record["completions"] if kind == "rankings" else [record[name] for name in [*texts, *sorted(extra)]]
    if isinstance(record["prompt"], str):
        fine = is_text(record["prompt"]) and all(map(is_text, completions))
    else:
        fine = is_talk(record["prompt"]) and all(is_talk(completion, last="assistant") for completion in completions)
    if kind == "preferences":
        fine = fine and record["chosen"] != record["rejected"]
    if kind == "rankings":
        rewards = record["rewards"]
        fine = fine and len(completions) == len(rewards) >= 2 and any(c != completions[0] for c in completions)
        fine = fine and all(type(reward) in (int, float) and math.isfinite(reward) for reward in rewards)
    return fine


@pytest.mark.parametrize("ending", CASES)
def test_random_damage_gives_valid_records_or_a_clear_error(ending, tmp_path):
    """Oracle: `is_valid`; a message of one line that begins with the file's name. Seeded."""
    chance = random.Random(f"damage {ending}")
    path: Path = tmp_path / f"x{ending}"
    outcomes = {"records": 0, "errors": 0}
    for case in range(CASES[ending]):
        kind = chance.choice(list(LOADERS))
        rows = chance.choice(ROWS_OF[kind])
        content = written(rows, ending)
        if ending != ".parquet" and chance.random() < 0.5:
            content = written(twisted(rows, chance), ending)
            if chance.random() < 0.7:
                path.write_bytes(content)
            else:
                path.write_bytes(damaged(content, written(ROWS_OF[kind][0], ending), chance))
        elif ending == ".jsonl.gz" and chance.random() < 0.5:
            path.write_bytes(gzip.compress(damaged(gzip.decompress(content), b"{}", chance), mtime=0))
        else:
            path.write_bytes(damaged(content, written(ROWS_OF["rankings"][0], ending), chance))
        records, said = outcome(LOADERS[kind], path)
        outcomes["errors" if said else "records"] += 1
        if said:
            assert said.startswith(str(path)), (case, said)
            assert "\n" not in said, (case, said)
        else:
            assert records, case
            assert all(is_valid(record, kind) for record in records), (case, kind, records)
            assert len({len(record.get("completions", ())) for record in records}) == 1, case
            assert len({"target" in record for record in records}) == 1, case
            assert [records.where(n).startswith(f"{path}, ") for n in range(len(records))] == [True] * len(records)
    assert min(outcomes.values()) > CASES[ending] // 40, outcomes  # else the damage is too much, or none
