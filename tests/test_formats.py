"""What the loaders make of every format, against TRL's own functions and against prompts cut by hand."""

import csv
import gzip
import json
import os
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from trl import data_utils as trl

from dapedu.data import (
    DataError,
    Records,
    apply_chat_template,
    load_demonstrations,
    load_preferences,
    load_rankings,
    save_records,
)
from tests.words import word_tokenizer

FIXTURE = Path(__file__).with_name("hh_fixture.jsonl")
TURN = "\n\nAssistant:"
PLAIN = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} </s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PAIR = {"prompt": "What is it?", "chosen": " A cat.", "rejected": " A dog."}
TALK = {"prompt": [user("What is it?")], "chosen": [assistant("A cat.")], "rejected": [assistant("A dog.")]}
RANKING = {"prompt": "a", "completions": ["b", "c"], "rewards": [1.0, -0.5]}
RANKED_TALK = {"prompt": [user("a")], "completions": [[assistant("b")], [assistant("c")]], "rewards": [1.0, -0.5]}


# ---- formats ----


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("The sky is blue.", "The sky is green."),
        ("Q: who?\nA: me", "Q: who?\nA: you"),
        ("两个人 在", "两个人 去"),
        ([user("a"), assistant("b")], [user("a"), assistant("c")]),
        (
            [user("a"), assistant("b"), user("c"), assistant("d")],
            [user("a"), assistant("b"), user("c"), assistant("e")],
        ),
        (
            [user("a"), assistant("b"), user("c"), assistant("d")],
            [user("a"), assistant("x"), user("c"), assistant("d")],
        ),
        (
            [{"role": "system", "content": "s"}, user("a"), assistant("b")],
            [{"role": "system", "content": "s"}, user("a"), assistant("c")],
        ),
    ],
)
def test_implicit_prompts_are_those_of_trl(chosen, rejected):
    """Oracle: trl.extract_prompt, where the texts differ at the beginning of a word."""
    row = {"chosen": chosen, "rejected": rejected}
    assert load_preferences([row]) == [trl.extract_prompt(row)]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The grass is green", "The grass is grey", "The grass is"),  # TRL: "The grass is gre"
        ("Answer:\n\nYes", "Answer:\n\nNo", "Answer:"),  # TRL: "Answer:\n\n"
        ("Is it? Yes indeed", "Is it? Yes", "Is it?"),  # TRL leaves nothing of the rejected one
        ("I don't", "I don’t", "I"),
        ("今天天气很好", "今天天气不好", "今天天气"),
        ("one:two", "one:three", "one:"),
    ],
)
def test_an_implicit_prompt_ends_with_a_word(chosen, rejected, prompt):
    """Oracle: by hand; the deviation from TRL that the docstring names."""
    n = len(prompt)
    assert load_preferences([{"chosen": chosen, "rejected": rejected}]) == [
        {"prompt": prompt, "chosen": chosen[n:], "rejected": rejected[n:]}
    ]


def test_the_longest_common_beginning_is_found():
    """Oracle: by construction, over texts that part at every place."""
    for n in range(1, 40):
        one, other = "x" * n + " b", "x" * n + " c"
        (record,) = load_preferences([{"chosen": one, "rejected": other}])
        assert record["prompt"] == "x" * n


MIX = {
    "prompt": "What is it?",
    "prompt_id": "7",
    "chosen": [*TALK["prompt"], *TALK["chosen"]],
    "rejected": [*TALK["prompt"], *TALK["rejected"]],
    "messages": [*TALK["prompt"], *TALK["chosen"]],
    "score_chosen": 8.0,
}


@pytest.mark.parametrize(
    ("row", "record"),
    [
        (PAIR, PAIR),
        (PAIR | {"target": " A tiger.", "note": 1}, PAIR | {"target": " A tiger."}),
        (TALK, TALK),
        (MIX, TALK),
        (MIX | {"prompt": TALK["prompt"]}, TALK),
        ({"chosen": MIX["chosen"], "rejected": MIX["rejected"]}, TALK),
        (TALK | {"chosen": [assistant("A cat.") | {"name": None}]}, TALK),
        # A prompt that stands in both completions again, as in tables made of UltraFeedback.
        (PAIR | {"chosen": "What is it? A cat.", "rejected": "What is it? A dog."}, PAIR),
        (
            PAIR | {"chosen": "What is it? A cat.", "rejected": "What is it? A dog.", "target": "What is it? It."},
            PAIR | {"target": " It."},
        ),
        (MIX | {"target": [*TALK["prompt"], assistant("It.")]}, TALK | {"target": [assistant("It.")]}),
        # In one of them alone it is an echo; a longer word is another one; one word may begin any text.
        *(
            (row, row)
            for row in (
                PAIR | {"chosen": "What is it? A cat."},
                {"prompt": "Name a dog", "chosen": "Name a dogma.", "rejected": "Name a dog."},
                {"prompt": "The", "chosen": "The cat.", "rejected": "The dog."},
                PAIR | {"target": "What is it? A cat."},
            )
        ),
        # A rejected conversation that ends where the chosen one goes on keeps its last message.
        (
            {"chosen": [user("a"), assistant("b"), user("c"), assistant("d")], "rejected": [user("a"), assistant("b")]},
            {
                "prompt": [user("a")],
                "chosen": [assistant("b"), user("c"), assistant("d")],
                "rejected": [assistant("b")],
            },
        ),
    ],
)
def test_preferences_in_their_canonical_form(row, record):
    """Oracle: by hand."""
    assert load_preferences([row]) == [record]


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"prompt": "a", "completion": "b", "k": 1}, {"prompt": "a", "completion": "b"}),
        (
            {"prompt": [user("a")], "completion": [assistant("b")]},
            {"prompt": [user("a")], "completion": [assistant("b")]},
        ),
        (
            {"messages": [user("a"), assistant("b"), user("c"), assistant("d")]},
            {"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d")]},
        ),
        (MIX, {"prompt": TALK["prompt"], "completion": TALK["chosen"]}),
        (PAIR, {"prompt": PAIR["prompt"], "completion": PAIR["chosen"]}),
        ({"chosen": "Is it? Yes", "rejected": "Is it? No"}, {"prompt": "Is it?", "completion": " Yes"}),
    ],
)
def test_demonstrations_in_their_canonical_form(row, record):
    """Oracle: by hand."""
    assert load_demonstrations([row]) == [record]


@pytest.mark.parametrize("row", [RANKING, RANKED_TALK])
def test_rankings_in_their_canonical_form(row):
    """Oracle: the record."""
    assert load_rankings([row | {"model": "m"}]) == [row]


def test_rewards_may_be_numpys_numbers(tmp_path):
    """Oracle: the record with Python's numbers, which JSON can hold; NaN and truth values are none."""
    for rewards in ([np.float64(1), np.float64(-0.5)], [np.float32(1), np.float32(-0.5)], [np.int64(1), -0.5]):
        records = load_rankings([RANKING | {"rewards": rewards}])
        assert records == [RANKING]
        save_records(tmp_path / "rankings.jsonl", records)
    for bad in (np.float32("nan"), np.float32("inf"), np.bool_(True)):
        with pytest.raises(DataError, match="`rewards` is not a list of finite numbers"):
            load_rankings([RANKING | {"rewards": [bad, 1.0]}])


def test_a_row_is_left_as_it_was():
    """Oracle: a copy of it."""
    row = json.loads(json.dumps(MIX))
    load_preferences([row])
    load_demonstrations([row])
    assert row == MIX


# ---- dialogues of hh-rlhf ----


def test_dialogues_are_cut_after_the_assistants_last_turn_in_common():
    """Oracle: a prompt ends with the turn's name, and the whole texts come back; the last two part early."""
    rows = [json.loads(line) for line in FIXTURE.read_text(encoding="utf8").splitlines()]
    records = load_preferences(FIXTURE)
    assert len(records) == len(rows) == 12
    for row, record in zip(rows, records, strict=True):
        assert record["prompt"].endswith(TURN)
        for field in ("chosen", "rejected"):
            assert record["prompt"] + record[field] == row[field]
            assert record[field].startswith(" ")
    assert [record["prompt"].count(TURN) for record in records] == [1, 1, 2, 2, 1, 3, 1, 1, 1, 2, 2, 1]
    assert all(TURN not in record["chosen"] for record in records[:-1])
    assert TURN in records[-1]["chosen"]


def test_the_real_file_if_there_is_one(tmp_path):
    """Oracle: its card's count of pairs, of which four have an empty completion; without it, the fixture's."""
    real = os.environ.get("DAPEDU_HH_RLHF")
    pairs, empty = (2312, 4) if real else (12, 0)
    path = Path(real or FIXTURE)
    content = gzip.decompress(path.read_bytes()) if real else path.read_bytes()
    rows = list(map(json.loads, content.splitlines()))
    # A second reading of the dialogues: cut after the last turn in common, by a loop over the turns.
    expected = []
    for row in rows:
        one, other = (row[field].split(TURN) for field in ("chosen", "rejected"))
        n = 0
        while n < min(len(one), len(other)) - 1 and one[n] == other[n]:
            n += 1
        prompt = TURN.join(one[:n]) + TURN
        expected.append({"prompt": prompt, **{f: row[f][len(prompt) :] for f in ("chosen", "rejected")}})
    usable = [record for record in expected if record["chosen"].strip() and record["rejected"].strip()]
    assert (len(rows), len(usable)) == (pairs, pairs - empty)
    if empty:
        with pytest.raises(DataError, match=r"line \d+: `\w+` is empty\. 3 more of 2,312"):
            load_preferences(path)
    save_records(tmp_path / "usable.jsonl", usable)
    same = load_preferences(tmp_path / "usable.jsonl") == usable  # not asserted as such: pytest would print the text
    assert same


# ---- sources ----

SOURCES = [".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet", "disk", "Dataset", "DatasetDict", "list"]


def source_of(rows: list[dict], sort: str, folder: Path):
    """Rows in a file or an object of some sort, and what positions in it are called."""
    path = folder / f"rows{sort}"
    if sort == "list":
        return rows, "records[{}]", 0
    if sort in ("Dataset", "DatasetDict", "disk"):
        dataset = datasets.Dataset.from_list(rows)
        if sort == "disk":
            dataset.save_to_disk(path)
            return path, f"{path}, row {{}}", 0
        return (dataset if sort == "Dataset" else datasets.DatasetDict(train=dataset)), "dataset, row {}", 0
    if sort == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path, f"{path}, row {{}}", 0
    if sort == ".json":
        path.write_text(json.dumps(rows, indent=2), encoding="utf8")
        return path, f"{path}, record {{}}", 0
    if sort == ".csv":
        with path.open("w", encoding="utf8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(
                {key: json.dumps(v) if isinstance(v, list) else v for key, v in row.items()} for row in rows
            )
        return path, f"{path}, line {{}}", 2
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if sort.endswith("gz") else content)
    return path, f"{path}, line {{}}", 1


@pytest.mark.parametrize("sort", SOURCES)
@pytest.mark.parametrize(
    ("load", "row"),
    [(load_preferences, PAIR), (load_rankings, RANKING), (load_preferences, TALK), (load_demonstrations, MIX)],
    ids=["pairs", "rankings", "talks", "mix"],
)
def test_every_source_gives_the_same_records(load, row, sort, tmp_path):
    """Oracle: the list of rows itself; positions counted by hand."""
    if sort == ".csv" and row in (TALK, MIX):
        pytest.skip("a table has no conversations")
    rows = [{"extra": str(n), **row} for n in range(3)]
    source, places, first = source_of(rows, sort, tmp_path)
    records = load(source)
    assert isinstance(records, Records)
    assert records == load(rows)
    assert [records.where(n) for n in range(3)] == [places.format(first + n) for n in range(3)]


@pytest.mark.parametrize("sort", SOURCES)
def test_every_source_names_the_place_of_a_bad_row(sort, tmp_path):
    """Oracle: positions counted by hand; a column that is missing everywhere is named with those that are there."""
    source, places, first = source_of([PAIR, PAIR | {"chosen": " \n"}, PAIR], sort, tmp_path)
    with pytest.raises(DataError) as error:
        load_preferences(source)
    assert str(error.value).startswith(f"{places.format(first + 1)}: `chosen` is empty. ")
    if sort == "disk":
        shutil.rmtree(source)
    source, places, first = source_of([{"prompt": "a", "answer": "b"}] * 3, sort, tmp_path)
    with pytest.raises(DataError) as error:
        load_preferences(source)
    assert str(error.value).startswith(
        f"{places.format(first)}: no `chosen`; there are 'prompt', 'answer'. 2 more of 3"
    )


def test_a_csv_record_stands_where_its_first_line_is(tmp_path):
    """Oracle: lines counted by hand: a cell with two line ends, then a blank line."""
    path = tmp_path / "pairs.csv"
    path.write_bytes(b'prompt,chosen,rejected\na,"b\nb\nb",c\n\n"a,","b""",c\r\n')
    records = load_preferences(path)
    assert records[0]["chosen"] == "b\nb\nb"
    assert records[1] == {"prompt": "a,", "chosen": 'b"', "rejected": "c"}
    assert [records.where(0), records.where(1)] == [f"{path}, line 2", f"{path}, line 6"]


def test_records_loaded_before_keep_their_positions():
    """Oracle: the file's."""
    records = load_preferences(FIXTURE)
    again = load_demonstrations(records)
    assert again.where(3) == records.where(3) == f"{FIXTURE}, line 4"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """What `load_dataset` does for a folder, under the name of a dataset that is not on this disk."""
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    for split in ("train", "test"):
        parquet.write_table(pyarrow.Table.from_pylist([PAIR] * 3), folder / "data" / f"{split}-0.parquet")
    load = datasets.load_dataset
    asked = []

    def stand_in(name, config=None, **options):
        asked.append((name, config))
        return load(str(folder), cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    return asked


def test_a_dataset_by_its_name(hub):
    """Oracle: the rows; what was asked for; the library's own list of splits."""
    records = load_preferences("owner/pairs", split="test")
    assert records == [PAIR] * 3
    assert records.where(2) == "owner/pairs, row 2"
    load_preferences("owner/pairs:plain", split="train[:2]")
    assert hub == [("owner/pairs", None), ("owner/pairs", "plain")]
    with pytest.raises(DataError, match=r"owner/pairs, split 'dev': .*one of \['train', 'test'\]"):
        load_preferences("owner/pairs", split="dev")


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (ConnectionError("Couldn't reach"), "and the hub cannot be reached"),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist"), "no such dataset on the hub"),
        (RuntimeError("Dataset scripts are no longer supported, but found b.py"), "(Dataset scripts are no longer"),
        (ValueError("BuilderConfig 'x' not found.\n Available: ['y']"), "not found. Available: ['y'])"),
        (datasets.exceptions.DatasetGenerationError("An error"), "cannot be loaded (An error)"),
        (OSError("disk"), "(disk)"),
    ],
)
def test_what_the_hub_says_is_one_line(raised, message, monkeypatch):
    """Oracle: the message; ours begins with the name."""

    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError) as error:
        load_preferences("owner/pairs")
    assert str(error.value).startswith("owner/pairs")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_hub_is_not_asked_about_a_slip_of_the_pen(hub, tmp_path, monkeypatch):
    """Oracle: nothing was asked for; a folder of the owner's name is here, or the word has a file's ending."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/pairs", "owner/pairs.jsonl", "owner/pairs/train", "pairs"):
        with pytest.raises(DataError, match=f"{name}: there is no such file"):
            load_preferences(name)
    assert hub == []


def test_a_dataset_without_the_split_says_which_there_are(tmp_path):
    both = datasets.DatasetDict(train=datasets.Dataset.from_list([PAIR]), test=datasets.Dataset.from_list([PAIR]))
    both.save_to_disk(tmp_path / "both")
    for source in (both, tmp_path / "both"):
        assert load_preferences(source, split="test") == [PAIR]
        with pytest.raises(DataError, match="no split 'dev'; there are train, test"):
            load_preferences(source, split="dev")


@pytest.mark.parametrize("missing", ["pyarrow", "datasets"])
def test_what_is_not_installed_is_named(missing, tmp_path, monkeypatch):
    """Oracle: the words that install it."""
    parquet_file = source_of([PAIR], ".parquet", tmp_path)[0]
    folder = source_of([PAIR], "disk", tmp_path)[0]
    monkeypatch.setitem(sys.modules, missing, None)
    for source in [parquet_file] if missing == "pyarrow" else [folder, "owner/pairs"]:
        with pytest.raises(DataError, match=rf"needs {missing}: pip install 'dapedu\[data\]'"):
            load_preferences(source)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=repr)
def test_lines_may_end_where_two_readings_of_the_file_meet(ending, end, tmp_path, monkeypatch):
    """Oracle: the same records in the same lines, however few bytes are read at a time."""
    path = tmp_path / f"pairs{ending}"
    content = end.join([*[json.dumps(PAIR).encode()] * 3, b"", json.dumps(PAIR | {"prompt": "é"}).encode()])
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    for size in range(1, 80):
        monkeypatch.setattr("dapedu.data.sources._CHUNK", size)
        records = load_preferences(path)
        assert records == [PAIR] * 3 + [PAIR | {"prompt": "é"}]
        assert [records.where(n)[-6:] for n in range(4)] == ["line 1", "line 2", "line 3", "line 5"]


# ---- chat templates ----


def tokenizer_with(template: str | None):
    tokenizer = word_tokenizer("a b")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("row", [TALK, {"prompt": TALK["prompt"], "completion": TALK["chosen"]}])
def test_conversations_are_rendered_as_trl_renders_them(row):
    """Oracle: trl.apply_chat_template."""
    tokenizer = tokenizer_with(PLAIN)
    (record,) = apply_chat_template([row], tokenizer)
    assert record == trl.apply_chat_template(row, tokenizer)
    assert record["prompt"] == "<user> What is it? </s>\n<assistant> "


def test_rankings_are_rendered_and_text_passes(tmp_path):
    """Oracle: by hand; positions are the given ones."""
    tokenizer = tokenizer_with(PLAIN)
    assert apply_chat_template([RANKED_TALK], tokenizer) == [
        {"prompt": "<user> a </s>\n<assistant> ", "completions": ["b </s>\n", "c </s>\n"], "rewards": [1.0, -0.5]}
    ]
    records = load_preferences(FIXTURE)
    assert apply_chat_template(records, tokenizer_with(None)) == records
    assert apply_chat_template(records, tokenizer).where(1) == f"{FIXTURE}, line 2"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template; set tokenizer.chat_template, or give texts"),
        ("{{ raise_exception('roles must alternate') }}", "refuses the conversation (roles must alternate)"),
        ("{{ messages[0].content + 1 }}", "refuses the conversation (can only concatenate str"),
        ("{{ messages[9].content.x }}", "refuses the conversation ("),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses the conversation (maximum recursion depth"),
        ("{% if %}", "refuses the conversation ("),
        (
            "{{ messages | length }}",
            "does not go on from the prompt: the prompt's text is not the beginning of the text with `chosen`",
        ),
        ("{{ messages[0].content }}", "leaves nothing of `chosen`"),
    ],
)
def test_a_template_that_does_not_do_is_named_with_the_record(template, message):
    """Oracle: the second of two records is the conversation."""
    with pytest.raises(DataError) as error:
        apply_chat_template([PAIR, TALK], tokenizer_with(template))
    assert str(error.value).startswith("records[1]: the ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
