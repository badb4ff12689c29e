"""Records as examples, batches and parts: what training reads, in which order."""

import json

import pytest
import torch
from tokenizers import normalizers, processors

from dapedu.data import Sequences, load_preferences
from dapedu.train import (
    METHODS,
    Examples,
    batches_of_epoch,
    parts_of_batch,
)
from tests.train_cases import WORDS, go
from tests.words import opinionated, word_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(WORDS)


@pytest.fixture
def model():
    return opinionated(vocab_size=9)


# ---- the data ----


@pytest.mark.parametrize("n", [1, 7, 64, 300])
def test_an_epoch_has_every_row_once(n):
    """Oracle: a sorted list; the order is another in another epoch and with another seed, and the same again."""

    def rows(seed: int, epoch: int) -> list[list[int]]:
        return batches_of_epoch(n, batch_size=8, seed=seed, epoch=epoch)

    orders = [rows(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for batches in orders:
        assert sorted(row for batch in batches for row in batch) == list(range(n))
        assert list(map(len, batches)) == [8] * (n // 8) + [n % 8] * (n % 8 > 0)
    assert orders == [rows(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    if n > 8:
        assert len({json.dumps(order) for order in orders}) == 4


def test_a_batch_is_a_sample_of_the_data():
    """Oracle: by chance the mean of a batch strays from that of the data by a standard error; 1,000 batches."""
    widths = torch.randint(3, 60, (2_000,), generator=torch.Generator().manual_seed(0)).double()
    batches = [batch for e in range(8) for batch in batches_of_epoch(2_000, batch_size=16, seed=0, epoch=e)]
    strays = torch.stack([widths[batch].mean() for batch in batches]) - widths.mean()
    assert strays.std().item() == pytest.approx(widths.std().item() / 4, rel=0.1)


def test_parts_of_a_batch_by_hand():
    """Oracle: rows 4, 0, 3, 1 have widths 1, 5, 2, 9; two parts pad 1 + 0 + 4 + 0 cells, one part 8 + 4 + 7."""
    widths = [5, 9, 7, 2, 1]
    assert parts_of_batch([4, 0, 3, 1], widths, parts=2) == [[4, 3], [0, 1]]
    assert parts_of_batch([4, 0, 3, 1], widths, parts=3) == [[4, 3], [0, 1]]  # as alike in number as can be
    assert parts_of_batch([4, 0, 3, 1], widths, parts=1) == [[4, 3, 0, 1]]
    assert parts_of_batch([4, 0], widths, parts=9) == [[4], [0]]


@pytest.mark.parametrize("parts", [1, 3])
def test_training_reads_epoch_after_epoch(parts, model, tokenizer, monkeypatch):
    """Oracle: `batches_of_epoch`, three times; 40 rows are batches of 16, 16 and 8."""
    read, select = [], Examples.select
    monkeypatch.setattr(Examples, "select", lambda self, rows: read.append(list(rows)) or select(self, rows))
    go(model, tokenizer, "sft", steps=9, batch_size=16, seed=5, parts=parts)
    steps = [sorted(row for part in read[n : n + parts] for row in part) for n in range(0, len(read), parts)]
    epochs = [batches_of_epoch(40, batch_size=16, seed=5, epoch=epoch) for epoch in range(3)]
    assert steps == [sorted(batch) for epoch in epochs for batch in epoch]


def test_examples_by_hand(tokenizer):
    """Oracle: <eos> 1, a 3 … f 8; a target makes a third column for methods that have one, and for no other."""
    records = [{"prompt": "a", "chosen": "b b", "rejected": "c", "target": "a"}]
    for method, k in {"dpo": 2, "slic-hf": 3, "click": 3}.items():
        examples = Examples.of(records, METHODS[method], tokenizer)
        assert examples.sequences.input_ids == [[3, 4, 4, 1], [3, 5, 1], [3, 3, 1]][:k]
        assert (examples.k, len(examples), examples.widths) == (k, 1, [4])
        assert examples.lengths.tolist() == [[3, 2, 2][:k]]
        assert examples.tokens == [sum([4, 3, 3][:k])]
    ranking = Examples.of([{"prompt": "a", "completions": ["b", "c"], "rewards": [1, 2]}], METHODS["rrhf"], tokenizer)
    assert ranking.rewards.tolist() == [[1.0, 2.0]]
    assert ranking.rewards.dtype == torch.float32


def test_fingerprints_differ_with_anything_that_differs(tokenizer):
    """Oracle: one change each: a word, the order, a reward, where the prompt ends."""
    records = [{"prompt": "a", "completions": ["b", "c"], "rewards": [1, 2]}] * 2

    def fingerprint(**change) -> str:
        return Examples.of([records[0], records[1] | change], METHODS["rrhf"], tokenizer).fingerprint()

    changes = [{}, {"prompt": "b"}, {"completions": ["c", "b"]}, {"rewards": [1, 3]}, {"prompt": "a b"}]
    changes.append({"prompt": "a b", "completions": ["b b", "c"]})
    assert len({fingerprint(**change) for change in changes}) == len(changes)
    assert fingerprint() == fingerprint()


def test_what_is_too_long_loses_the_beginning_of_its_prompt(tokenizer):
    """Oracle: by hand; both completions keep the same prompt, and one token of it at least."""
    records = [{"prompt": "a b c d", "chosen": "e", "rejected": "e f"}, {"prompt": "a", "chosen": "b", "rejected": "c"}]

    def shortened(max_length: int) -> Examples:
        return Examples.of(records, METHODS["dpo"], tokenizer, max_length=max_length)

    assert shortened(7).sequences == Examples.of(records, METHODS["dpo"], tokenizer).sequences
    assert shortened(5).sequences.input_ids == [[5, 6, 7, 1], [5, 6, 7, 8, 1], [3, 4, 1], [3, 5, 1]]
    assert shortened(5).sequences.prompt_lengths == [2, 2, 1, 1]
    with pytest.raises(
        ValueError, match=r"records\[0\]: a completion does not fit in max_length = 3 .* 1 of 2 records"
    ):
        shortened(3)


def test_a_begin_token_is_not_cut():
    """Oracle: by hand; <bos> 0 stays in front, and a word of the prompt behind it."""
    tokenizer = word_tokenizer(WORDS, special={"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    records = [{"prompt": "a b c d", "chosen": "e", "rejected": "e f"}]
    examples = Examples.of(records, METHODS["dpo"], tokenizer, max_length=5)
    assert examples.sequences == Sequences([[0, 6, 7, 1], [0, 6, 7, 8, 1]], [2, 2])
    with pytest.raises(ValueError, match="does not fit in max_length = 4"):
        Examples.of(records, METHODS["dpo"], tokenizer, max_length=4)


def test_a_completion_without_tokens_is_refused_with_its_place(tokenizer, tmp_path):
    """Oracle: the line; the text is not empty, but the tokenizer makes nothing of it."""
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 2)
    records = load_preferences(tmp_path / "pairs.jsonl")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("c", "")
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 1: completion 2 has no tokens"):
        Examples.of(records, METHODS["dpo"], tokenizer)
