"""Records in and out, what is said of a bad file, and token batches against the tokenizer's own answers."""

import json
import os

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from trl.data_utils import _tokenize

from dapedu.data import (
    DataError,
    Sequences,
    collate,
    encode,
    load_demonstrations,
    load_preferences,
    load_rankings,
    save_records,
)
from tests.words import word_tokenizer

torch.set_num_threads(1)

DEMONSTRATION = {"prompt": "a b", "completion": "c"}
PREFERENCE = {"prompt": "a", "chosen": "b", "rejected": "c"}
RANKING = {"prompt": "a", "completions": ["b", "c"], "rewards": [1, -0.5]}
LOADERS = {"demonstration": load_demonstrations, "preference": load_preferences, "ranking": load_rankings}
RECORDS = {"demonstration": DEMONSTRATION, "preference": PREFERENCE, "ranking": RANKING}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "records.jsonl"


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer("a b c")


def line(**record) -> bytes:
    return json.dumps(record).encode() + b"\n"


# ---- what is read ----


@pytest.mark.parametrize("kind", RECORDS)
def test_records_come_back_as_they_were_saved(kind, file):
    """Oracle: the records themselves, in their order, without a field that nobody asked for."""
    awkward = 'é, "q", \\, \t, 😀, \u2028, \x85, \x0b, \r\n'
    records = [RECORDS[kind] | {"note": {"n": number, "text": awkward}} for number in range(3)]
    text = "completions" if kind == "ranking" else "completion" if kind == "demonstration" else "chosen"
    records[1][text] = [awkward, "b"] if kind == "ranking" else awkward
    save_records(file, records)
    loaded = LOADERS[kind](file)
    assert [record | {"note": saved["note"]} for record, saved in zip(loaded, records, strict=True)] == records
    assert all(set(record) == set(RECORDS[kind]) for record in loaded)
    assert [loaded.where(index) for index in range(3)] == [f"{file}, line {number}" for number in (1, 2, 3)]
    assert file.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b", "\x0c"])
def test_only_a_line_end_ends_a_line(separator, file):
    """Oracle: one record; str.splitlines would make two of it. Control characters are escaped, as JSON wants."""
    record = PREFERENCE | {"chosen": f"one{separator}two"}
    save_records(file, [record])
    assert load_preferences(file) == [record]
    assert len(file.read_text(encoding="utf8").splitlines()) == (1 if separator < " " else 2)


@pytest.mark.parametrize(
    "content",
    [
        b"\n\n" + line(**PREFERENCE) + b"  \t\n" + line(**PREFERENCE) + b"\n\n",
        line(**PREFERENCE).replace(b"\n", b"\r\n") * 2,
        line(**PREFERENCE).replace(b"\n", b"\r") * 2,
        (line(**PREFERENCE) * 2)[:-1],
        b"\xef\xbb\xbf" + line(**PREFERENCE) * 2,
    ],
    ids=["blank lines", "Windows", "old Macs", "no last line end", "byte-order mark"],
)
def test_other_peoples_files_are_read(content, file):
    """Oracle: the same two records."""
    file.write_bytes(content)
    assert load_preferences(file) == [PREFERENCE, PREFERENCE]


def test_a_preference_may_have_a_target_and_a_ranking_any_finite_reward(file):
    """Oracle: the records as written."""
    records = [PREFERENCE | {"target": "b b"}]
    save_records(file, records)
    assert load_preferences(file) == records
    records = [RANKING | {"rewards": [-3, 1e300]}]
    save_records(file, records)
    assert load_rankings(file) == records


# ---- what is refused, by file, line and field ----

GOOD = {kind: line(**record) for kind, record in RECORDS.items()}
NOT_UNICODE = rb'{"prompt": "a", "chosen": "\ud83d", "rejected": "c"}'


@pytest.mark.parametrize(
    ("kind", "bad", "message"),
    [
        ("preference", b"{", "not JSON ("),
        ("preference", b"prompt,chosen", "expected one object a line"),
        ("preference", b'["a"]', "a list, expected an object"),
        ("preference", b"null", "null, expected an object"),
        ("preference", b"[" * 100_000, "not readable JSON (nested too deeply)"),
        ("preference", b"1" * 5_000, "not readable JSON (a number of thousands of digits)"),
        ("preference", line(prompt="é").replace(b"\\u00e9", b"\xe9"), "not UTF-8 (byte 0xe9 at 12: "),
        ("preference", NOT_UNICODE, "`chosen` has half a surrogate pair in it"),
        ("preference", line(prompt="a", chosen="b"), "no `rejected`; there are 'prompt', 'chosen'"),
        ("preference", b"{}", "no `chosen`; there are no fields"),
        ("preference", line(**PREFERENCE | {"chosen": 3}), "`chosen` is a number, expected text"),
        ("preference", line(**PREFERENCE | {"chosen": float("nan")}), "`chosen` is a number, expected text"),
        ("preference", line(**PREFERENCE | {"target": None}), "`target` is null, expected text"),
        ("preference", line(**PREFERENCE | {"prompt": " \n"}), "`prompt` is empty"),
        ("demonstration", line(prompt="a", chosen="b"), "no `completion`; there are 'prompt', 'chosen'"),
        ("demonstration", line(prompt=["a"], completion="b"), "`prompt` is no list of messages: prompt[0] is text"),
        ("ranking", line(completions=["a", "b"], rewards=[1, 2]), "no `prompt`"),
        ("ranking", line(**RANKING | {"completions": "bc"}), "`completions` is not a list of texts"),
        ("ranking", line(**RANKING | {"completions": ["b", 1]}), "`completions` is not a list of texts"),
        ("ranking", line(**RANKING | {"completions": ["b", "\ud83d"]}), "surrogate pair in it (completions[1])"),
        ("ranking", line(prompt="a", completions=["b", "c"]), "no `rewards`; there are 'prompt', 'completions'"),
        ("ranking", line(**RANKING | {"rewards": [1, True]}), "`rewards` is not a list of finite numbers"),
        ("ranking", line(**RANKING | {"rewards": [1, float("nan")]}), "`rewards` is not a list of finite numbers"),
        ("ranking", line(**RANKING | {"rewards": [1, float("inf")]}), "`rewards` is not a list of finite numbers"),
        ("ranking", line(**RANKING | {"rewards": [1, 10**400]}), "`rewards` is not a list of finite numbers"),
        (
            "ranking",
            line(**RANKING | {"rewards": [1]}),
            "`completions` and `rewards` are not k ≥ 2 of each: there are 2 and 1",
        ),
        ("ranking", line(prompt="a", completions=["b"], rewards=[1]), "not k ≥ 2 of each: there are 1 and 1"),
        (
            "ranking",
            line(prompt="a", completions=["b", "b", "c"], rewards=[1] * 3),
            "`completions` differs in number: 3, the first record has 2",
        ),
    ],
)
def test_a_bad_record_is_named_by_file_line_and_field(kind, bad, message, file):
    """Oracle: it stands in line 4 of the file, after a blank line."""
    file.write_bytes(GOOD[kind] + b"\n" + GOOD[kind] + bad.strip() + b"\n" + GOOD[kind])
    with pytest.raises(DataError) as error:
        LOADERS[kind](file)
    assert str(error.value).startswith(f"{file}, line 4: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_another_encoding_is_refused(file):
    """Oracle: a table program's Unicode, UTF-16."""
    file.write_bytes((line(**PREFERENCE) * 2).decode().encode("utf-16"))
    with pytest.raises(DataError, match=r"records\.jsonl: encoded as UTF-16, expected UTF-8"):
        load_preferences(file)


@pytest.mark.parametrize("kind", LOADERS)
def test_a_file_without_records_is_refused(kind, file, tmp_path):
    with pytest.raises(DataError, match=r"records\.jsonl: there is no such file"):
        LOADERS[kind](file)
    with pytest.raises(DataError, match="a folder, expected a file"):
        LOADERS[kind](tmp_path)
    file.write_bytes(b"\n \n")
    with pytest.raises(DataError, match=r"records\.jsonl: no records in it"):
        LOADERS[kind](file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_one_may_not_read_is_refused(file):
    file.write_bytes(GOOD["preference"])
    file.chmod(0)
    with pytest.raises(DataError, match="cannot be read"):
        load_preferences(file)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "\ud83d", {1, 2}])
def test_nothing_is_half_written(bad, file):
    """Oracle: the file from before, and no other beside it."""
    save_records(file, [PREFERENCE])
    with pytest.raises((ValueError, TypeError)):
        save_records(file, [DEMONSTRATION, {"prompt": bad}])
    assert load_preferences(file) == [PREFERENCE]
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_is_made(tmp_path):
    save_records(tmp_path / "new" / "er" / "records.jsonl", iter([PREFERENCE]))
    assert load_preferences(tmp_path / "new" / "er" / "records.jsonl") == [PREFERENCE]


# ---- tokens ----


def test_ids_by_hand(tokenizer):
    """Oracle: <pad> 0, <eos> 1, <unk> 2, then a, b, c; an end after every completion, also an empty one."""
    sequences = encode(["a b", "c"], ["c what", ""], tokenizer)
    assert sequences == Sequences([[3, 4, 5, 2, 1], [5, 1]], [2, 1])
    assert sequences.lengths.tolist() == [3, 1]
    assert len(sequences) == 2
    assert sequences.select([1, 0, 1]) == Sequences([[5, 1], [3, 4, 5, 2, 1], [5, 1]], [1, 2, 1])
    assert encode([], [], tokenizer) == Sequences([], [])


def test_a_tokenizers_begin_token_stands_once_before_each_prompt():
    """Oracle: the tokenizer's own ids of the whole text, and TRL's; a text may have the token already."""
    tokenizer = word_tokenizer("a b c", special={"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"})
    assert encode(["a b"], ["c"], tokenizer) == Sequences([[3, 4, 5, 1]], [2])  # it puts none by itself
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    sequences = encode(["a b", "<bos> a"], ["c", "b <eos>"], tokenizer)
    assert sequences == Sequences([[0, 3, 4, 5, 1], [0, 3, 4, 1]], [3, 2])
    assert sequences.input_ids[0] == tokenizer("a b c <eos>")["input_ids"]
    assert _tokenize(tokenizer, "a b c <eos>")["input_ids"] == sequences.input_ids[0]
    with pytest.raises(ValueError, match="prompt 0 has no tokens"):
        encode([" "], ["c"], tokenizer)


def test_a_completion_has_no_space_that_its_text_has_not():
    """Oracle: the tokenizer's ids of the whole text; one that reads every text as if a space stood before it."""
    pieces = ["<eos>", "<unk>", "▁", "▁a", "a", "b", ":", "▁b", "▁a:"]
    words = Tokenizer(models.BPE({p: n for n, p in enumerate(pieces)}, [("▁", "a"), ("▁", "b")], unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    metaspace = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>")
    assert metaspace("b", add_special_tokens=False)["input_ids"] == [7]  # ▁b
    assert encode(["a:", "a:"], ["b", " b"], metaspace).input_ids == [[3, 6, 5, 0], [3, 6, 7, 0]]


def test_a_batch_by_hand(tokenizer):
    """Oracle: no wider than the longest; the mask is true on completion and end, false on prompt and padding."""
    input_ids, mask = collate(encode(["a b", "c"], ["c what", ""], tokenizer))
    assert input_ids.tolist()[0] == [3, 4, 5, 2, 1]
    assert input_ids.tolist()[1][:2] == [5, 1]
    assert mask.int().tolist() == [[0, 0, 1, 1, 1], [0, 1, 0, 0, 0]]
    assert 0 not in input_ids  # transformers warns of a missing mask where it meets the tokenizer's padding


def test_no_token_spans_prompt_and_completion():
    """Oracle: a tokenizer that would join them, as byte-pair ones do, with a special token of its own in front."""
    tokenizer = Tokenizer(models.BPE({"<eos>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    tokenizer.post_processor = processors.TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 0)])
    joining = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    assert joining("ab")["input_ids"] == [0, 3]
    assert encode(["a"], ["b"], joining) == Sequences([[1, 2, 0]], [1])


def test_what_cannot_be_encoded_is_refused(tokenizer):
    """Oracle: the message says which prompt, and what to set."""
    with pytest.raises(ValueError, match="encode: 2 prompts and 1 completions"):
        encode(["a", "b"], ["c"], tokenizer)
    with pytest.raises(ValueError, match="encode: prompt 1 has no tokens"):
        encode(["a", ""], ["c", "c"], tokenizer)
    with pytest.raises(ValueError, match=r"encode: tokenizer has no eos_token.*set tokenizer\.eos_token"):
        encode(["a"], ["b"], word_tokenizer("a b", special={"unk_token": "<unk>"}))
