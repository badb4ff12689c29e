"""The report on a source, against counts by hand, and the command that prints it."""

import json
from pathlib import Path

import datasets
import pytest

from dapedu.cli import main
from dapedu.data import (
    DataError,
    Lengths,
    check_records,
    encode,
    load_demonstrations,
    load_preferences,
    load_rankings,
    save_records,
)
from tests.words import word_tokenizer

FIXTURE = Path(__file__).with_name("hh_fixture.jsonl")
SECRET = "unmentionable"  # stands for text that a report must not show


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


# Ten lines, of which 4, 6 and 8 cannot be used.
LINES = [
    pair("a", "b b", "c"),
    pair("a", "c", "b b"),  # contradicts line 1
    pair(f"a  {SECRET}", "b", "c c"),
    pair("a", "", "c"),
    pair("a", "b b", "c"),  # line 1 again
    pair("a", "", "c"),
    pair("b", "c", SECRET),
    pair("b", "c", "c"),
    pair("d", "a", "b"),
    pair("d", "b", "a"),  # contradicts line 9
]


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in LINES), encoding="utf8")
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer("a b c d")


def test_what_is_counted(file):
    """Oracle: by hand, over the ten lines."""
    report = check_records(file)
    assert (report.kind, report.rows, len(report.usable)) == ("preferences", 10, 7)
    assert {kind: problem.positions for kind, problem in report.problems.items()} == {
        "`chosen` is empty": [4, 6],
        "`chosen` and `rejected` are the same": [8],
    }
    assert report.forms == {"explicit prompt, text": 7}
    assert report.repeated_records == [5]
    assert report.repeated_prompts == [2, 5, 10]
    assert report.contradictions == [(2, 1), (5, 2), (10, 9)]
    assert (report.chosen_longer, report.chosen_shorter) == (2 / 7, 3 / 7)
    assert report.characters["chosen"] == Lengths(median=1, most=3, nearly_all=3, longest=3)
    assert report.usable.where(3) == f"{file}, line 5"
    assert (report.tokens, report.held_out, report.max_length) == ({}, None, None)


def test_quantiles_are_lengths_of_texts():
    """Oracle: of 1 … 100 the 50th, 90th, 99th and last."""
    records = [{"prompt": "a", "completion": "x" * n} for n in range(100, 0, -1)]
    assert check_records(records).characters["completion"] == Lengths(50, 90, 99, 100)


def test_tokens_and_what_must_be_cut(tokenizer):
    """Oracle: by hand: prompt and longest completion, its end counted, are 4, 6 and 5 tokens."""
    records = [pair("a b", "c", ""), pair("a b", "c", "d"), pair("a b", "c c c", "d"), pair("a b c", "c", "d")]
    report = check_records(records, tokenizer=tokenizer, max_length=4)
    assert report.tokens["chosen"].longest == 4
    assert report.tokens["prompt"] == Lengths(2, 3, 3, 3)
    assert report.prompts_cut == [3]
    assert report.completions_too_long == 1
    assert report.problems["a completion does not fit in 4 tokens"].positions == [2]
    assert list(report.usable) == [records[1], records[3]]
    assert [report.usable.where(0), report.usable.where(1)] == ["records[1]", "records[3]"]
    assert report.forms == {"explicit prompt, text": 2}
    assert check_records(records, tokenizer=tokenizer, max_length=5).prompts_cut == [2]
    assert check_records(records, tokenizer=tokenizer, max_length=6).prompts_cut == []


def test_what_the_tokens_show_and_the_texts_do_not(tokenizer):
    """Oracle: ids by hand: an end alone, what a normaliser leaves out, the same words after other white space."""
    fine = pair("a", "b", "c")
    records = [fine, pair("a", "<eos>", "b"), pair("a", "b", "b <eos>"), pair("a", "b  c", "b c"), pair("a", "x", "y")]
    report = check_records(records, tokenizer=tokenizer)
    assert {kind: problem.positions for kind, problem in report.problems.items()} == {
        "`chosen` and `rejected` have the same tokens": [2, 3, 4],  # of x and y the tokenizer knows neither
        "`chosen` has no tokens but its end": [1],
    }
    assert list(report.usable) == [fine]
    assert len(check_records(records).usable) == 5
    rankings = [{"prompt": "a", "completions": ["b", second], "rewards": [0, 1]} for second in ("c", "b  ")]
    report = check_records(rankings, tokenizer=tokenizer)
    assert report.problems["`completions` have the same tokens"].positions == [1]
    demonstrations = [{"prompt": "a", "completion": text} for text in ("b", "b", "<eos>")]
    assert check_records(demonstrations, tokenizer=tokenizer).problems["`completion` has no tokens but its end"]


def test_a_target_stands_in_all_records_or_in_none(file):
    """Oracle: by hand: the first record decides."""
    with_target = pair("a", "b", "c") | {"target": "d"}
    report = check_records([with_target, pair("a", "b", "d"), with_target])
    assert report.problems["`target` is in some records only"].positions == [1]
    assert "record 1: `target` is in some records only: the first record has one" in str(report)
    assert "target" not in check_records(file).characters


def test_tokens_are_those_of_encode(tokenizer):
    """Oracle: `encode`, which ends a completion unless it has its end."""
    records = [{"prompt": "a b", "completion": "c"}, {"prompt": "a", "completion": "c d <eos>"}]
    report = check_records(records, tokenizer=tokenizer)
    lengths = encode(["a b", "a"], ["c", "c d <eos>"], tokenizer).lengths.tolist()
    assert [report.tokens["completion"].median, report.tokens["completion"].longest] == sorted(lengths)


def test_conversations_are_rendered_to_be_counted(tokenizer):
    """Oracle: tokens by hand; what the template refuses is a problem with its positions."""
    talk = {
        "prompt": [{"role": "user", "content": "a"}],
        "completion": [{"role": "assistant", "content": "b c"}],
    }
    bad = {**talk, "prompt": [{"role": "system", "content": "a"}]}
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content + ' d ' }}{% endfor %}"
    )
    tokenizer = word_tokenizer("a b c d")
    tokenizer.chat_template = template
    report = check_records([talk, bad], tokenizer=tokenizer)
    assert (report.tokens["prompt"].longest, report.tokens["completion"].longest) == (2, 4)
    assert report.characters["completion"].longest == 3
    assert report.problems["the chat template refuses the conversation"].positions == [1]
    assert list(report.usable) == [talk]


def test_prompts_that_are_held_out_too(tmp_path, file):
    """Oracle: by hand; white space makes no difference, nor does the kind of the held-out records."""
    save_records(tmp_path / "held.jsonl", [{"prompt": p, "completion": "x"} for p in ("z", f"a {SECRET}\n", "d")])
    report = check_records(file, held_out=tmp_path / "held.jsonl")
    assert report.shared_prompts == [(3, 2), (9, 3), (10, 3)]


def test_held_out_records_have_a_split_of_their_own(tmp_path, capsys):
    """Oracle: by hand: the splits share one prompt, a split shares all of its own."""
    splits = {"train": [pair("a", "b", "c"), pair("b", "b", "c")], "test": [pair("b", "c", "d")]}
    both = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})
    assert check_records(both, held_out=both, held_out_split="test").shared_prompts == [(1, 0)]
    assert check_records(both, split="test", held_out=both).shared_prompts == [(0, 1)]
    both.save_to_disk(tmp_path / "both")
    words = ["data", "check", f"{tmp_path}/both", "--held-out", f"{tmp_path}/both", "--held-out-split", "test"]
    assert main(words) == 0
    assert "rows 1 as its 0" in capsys.readouterr().out


def test_rankings_are_checked_too():
    """Oracle: by hand."""
    rankings = [{"prompt": "a", "completions": ["b", "cc"], "rewards": [1, n]} for n in (0, 1)]
    report = check_records([*rankings, rankings[0] | {"completions": ["b", "c", "d"], "rewards": [1, 2, 3]}])
    assert (report.kind, report.equal_rewards) == ("rankings", [1])
    assert report.problems["`completions` differs in number"].positions == [2]
    assert report.characters["completions"] == Lengths(1, 2, 2, 2)
    assert "all rewards equal" in str(report)


def test_the_report_is_narrow_and_shows_no_text(file, tokenizer, tmp_path):
    """Oracle: every line below 100 characters, also for long names; no word of the data."""
    long = tmp_path / ("long" * 50 + ".jsonl")
    long.write_bytes(file.read_bytes())
    for path in (file, long):
        said = str(check_records(path, tokenizer=tokenizer, max_length=3, held_out=file))
        assert "completions too long" in said
        assert max(map(len, said.splitlines())) < 100
        assert SECRET not in said
    assert "lines 4, 6" in said
    report = check_records(file)
    assert "  3  lines 2 and 1, 5 and 2, 10 and 9" in str(report)
    assert f"{'  `chosen` is empty':52}         2  lines 4, …" in report.table(listed=1)
    assert "lines" not in report.table(listed=0)
    many = check_records([{"prompt": "a", "completion": "b"}] * 50).table(listed=49)
    assert max(map(len, many.splitlines())) < 100
    assert f"records {', '.join(map(str, range(1, 50)))}" in " ".join(many.split())


def test_what_cannot_be_checked(file, tmp_path, tokenizer):
    """Oracle: the words."""
    with pytest.raises(DataError, match=r"records\[0\]: neither chosen.*so its kind is not known"):
        check_records([{"text": "a"}])
    (tmp_path / "x.jsonl").write_bytes(b"{\n{\n")
    with pytest.raises(DataError, match=r"x\.jsonl, line 1: not JSON .*so its kind is not known"):
        check_records(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="records: no records in it"):
        check_records([], kind="rankings")
    with pytest.raises(DataError, match="no preferences in it that can be used"):
        check_records(file, held_out=[pair("a", "", "")])
    with pytest.raises(ValueError, match="max_length is 8, expected at least 2, and a tokenizer"):
        check_records(file, max_length=8)
    with pytest.raises(ValueError, match="max_length is 1"):
        check_records(file, max_length=1, tokenizer=tokenizer)


# ---- the command ----


def checked(words: list, capsys) -> tuple[int, str, str]:
    status = main(["data", "check", *map(str, words)])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command_says_by_its_status_whether_all_can_be_used(file, tmp_path, capsys):
    """Oracle: 0, 1 and 2; what is read is reported beside what is not."""
    status, out, err = checked([FIXTURE], capsys)
    assert (status, err) == (0, "")
    assert "12  implicit prompt, hh-rlhf dialogues" in out
    status, out, err = checked([file, "--list", 1], capsys)
    assert (status, err) == (1, "")
    assert out.rstrip() == check_records(str(file)).table(listed=1)
    status, out, err = checked([tmp_path / "none.jsonl", FIXTURE], capsys)
    assert status == 2
    assert "none.jsonl: there is no such file" in err
    assert "12  implicit prompt" in out


def test_the_output_can_be_loaded(file, tmp_path, capsys):
    """Oracle: the loaders, over what the report calls usable; of two files one after the other."""
    clean = tmp_path / "new" / "clean.jsonl"
    assert checked([file, FIXTURE, "--output", clean], capsys)[0] == 1
    assert load_preferences(clean) == [*check_records(file).usable, *load_preferences(FIXTURE)]
    other = tmp_path / "new" / "demonstrations.jsonl"
    assert checked([FIXTURE, "--kind", "demonstrations", "--output", other], capsys)[0] == 0
    assert load_demonstrations(other) == load_demonstrations(FIXTURE)


def test_the_tokenizer_is_that_of_a_folder(file, tmp_path, capsys, tokenizer):
    """Oracle: `check_records` with the tokenizer itself."""
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf8")
    words = [file, "--tokenizer", tmp_path / "model", "--max-length", 4, "--held-out", FIXTURE]
    status, out, _ = checked([*words, "--output", tmp_path / "clean.jsonl"], capsys)
    report = check_records(str(file), tokenizer=tokenizer, max_length=4, held_out=FIXTURE)
    assert status == 1
    assert out.startswith(str(report))
    assert "in 4 tokens" in out
    assert load_preferences(tmp_path / "clean.jsonl") == list(report.usable)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{0}", "--max-length", "8"], "--max-length counts tokens, so it needs --tokenizer"),
        (["{0}", "--list", "-1"], "--list is -1, expected at least 0"),
        (["{0}", "--output", "{0}"], "pairs.jsonl, which exists already; remove it or choose another name"),
        (["{0}", "--held-out", "{1}/../{1.name}/pairs.jsonl"], "would be evaluated on what it is trained on"),
        (["{0}", "--held-out", "{0}", "--held-out-split", "test"], "would be evaluated on what it is trained on"),
        (["{0}", "--tokenizer", "{1}/model", "--max-length", "1"], "max_length is 1, expected at least 2"),
        (["{0}", "--output", "{1}/x.csv"], "expected a name that ends with .jsonl"),
        (["{0}", "--tokenizer", "{1}/none"], "none"),
        (["{0}", "{1}/rankings.jsonl", "--output", "{1}/x.jsonl"], "records of different kinds"),
        (
            ["{1}/rankings.jsonl", "{1}/threes.jsonl", "--output", "{1}/x.jsonl"],
            "differ in their number of completions",
        ),
    ],
)
def test_words_that_make_no_sense_are_refused(words, message, file, tmp_path, capsys):
    """Oracle: status 2, one line, nothing written, the file as it was."""
    word_tokenizer("a b").save_pretrained(tmp_path / "model")
    save_records(tmp_path / "rankings.jsonl", [{"prompt": "a", "completions": ["b", "c"], "rewards": [0, 1]}])
    save_records(tmp_path / "threes.jsonl", [{"prompt": "a", "completions": ["b", "c", "d"], "rewards": [0, 1, 2]}])
    before = file.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        main(["data", "check", *(word.format(file, tmp_path) for word in words)])
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert err.startswith("dapedu data check: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert file.read_bytes() == before
    assert not (tmp_path / "x.jsonl").exists()
    assert load_rankings(tmp_path / "rankings.jsonl")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-length", "abc"], "argument --max-length: abc, expected a whole number"),
        (["--max-length", "0"], "argument --max-length: 0, expected at least 1"),
        (["--output", ""], "argument --output: an empty name, expected one"),
        (["--output", "{1}"], "is a folder, expected a file's name"),
    ],
)
def test_values_that_are_none_of_an_options(words, message, file, tmp_path, capsys):
    """Oracle: argparse's own line with our words."""
    with pytest.raises(SystemExit) as stopped:
        main(["data", "check", str(file), *(word.format(file, tmp_path) for word in words)])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_nothing_usable_is_nothing_written(tmp_path, capsys):
    """Oracle: no file, and the words."""
    save_records(tmp_path / "pairs.jsonl", [pair("a", "b", "b")])
    status, _, err = checked([tmp_path / "pairs.jsonl", "--output", tmp_path / "clean.jsonl"], capsys)
    assert status == 1
    assert "nothing can be used, so nothing was written" in err
    assert not (tmp_path / "clean.jsonl").exists()
