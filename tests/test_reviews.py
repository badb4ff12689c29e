"""The reviews world: its grammar and splits, the tokenizer, the judge against sums by hand, labels, and its files."""

import hashlib
import itertools
import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from dapedu import experiments, reviews
from dapedu.evaluate import mean_interval
from dapedu.reviews import card, grammar, lexicon
from dapedu.reviews.tokenizer import vocabulary

DATA = Path(__file__).parents[1] / "data" / "reviews"
PROMPT = "a student reviews the cheap hotel:"


@pytest.fixture(scope="module")
def human() -> list[dict[str, str]]:
    return reviews.corpus(4_000, seed=7)


@pytest.fixture(scope="module")
def tokenizer():
    return reviews.make_tokenizer()


# Lexicon and grammar


def test_the_lexicon_keeps_its_own_rules():
    """Oracle: the judge takes it for granted: topics differ in name, words have one score, tables agree."""
    aspects = {aspect for aspects in lexicon.ASPECTS.values() for aspect in aspects}
    assert aspects == set(lexicon.KIND_OF)
    assert aspects >= lexicon.PLURAL
    assert sum(map(len, lexicon.KINDS.values())) == len(lexicon.KIND_OF)
    assert set(lexicon.KINDS) == set(lexicon.SPECIFIC)
    groups = [group.name for group in lexicon.GROUPS]
    topics = [*aspects, *lexicon.REVIEWERS, *lexicon.REMARKS, *groups]
    assert len(topics) == len(set(topics))
    adjectives = [*lexicon.GENERAL, *itertools.chain(*lexicon.SPECIFIC.values())]
    assert len(adjectives) == len(set(adjectives))
    assert {len(aspects) for aspects in lexicon.ASPECTS.values()} == {5}
    assert all(any(word in sentence.split() for word in lexicon.RUDE_WORDS) for sentence in lexicon.RUDE)


def test_fixed_sentences_repeat_nothing_by_accident():
    """Oracle: all of them, said once in one text, are not repetitive; rude words are in rude remarks alone."""
    scenes = [scene for group in lexicon.GROUPS for scene in group.scenes]
    remarks = [remark for remarks in lexicon.REMARKS.values() for remark in remarks]
    polite = [*lexicon.REVIEWERS, *scenes, *remarks, *lexicon.VERDICTS, *lexicon.THANKS]
    assert len({*polite, *lexicon.RUDE}) == len(polite) + len(lexicon.RUDE)
    assert not reviews.is_repetitive(". ".join([*polite, *lexicon.RUDE]))
    assert not reviews.is_rude(". ".join(polite))


def test_splits_are_disjoint_and_each_holds_everything():
    """Oracle: counting; 20 reviewers × 9 descriptors × 18 items, 80/10/10 exactly."""
    splits = {split: grammar.split_prompts(split) for split in reviews.SPLITS}
    assert {split: len(found) for split, found in splits.items()} == {"train": 2592, "validation": 324, "test": 324}
    everything = {str(prompt) for found in splits.values() for prompt in found}
    assert len(everything) == 20 * 9 * 18
    for found in splits.values():
        reviewers, descriptors, items = map(set, zip(*found, strict=True))
        assert (reviewers, descriptors, items) == (set(lexicon.HABITS), set(lexicon.REMARKS), set(lexicon.ITEMS))
    assert reviews.prompts("validation") == [str(prompt) for prompt in splits["validation"]]
    assert reviews.prompts("train")[0] == PROMPT
    assert "an engineer reviews the new cafe:" in everything


def test_the_corpus_is_what_it_is_asked_to_be(human, monkeypatch):
    """Oracle: the split; the seed; a longer corpus begins with the shorter one; no text is longer than said."""
    assert human[:50] == reviews.corpus(50, seed=7)
    assert human[:50] != reviews.corpus(50, seed=8)
    for split in reviews.SPLITS:
        assert {record["prompt"] for record in reviews.corpus(200, split=split)} <= set(reviews.prompts(split))
    assert max(grammar.count_tokens(record["completion"]) for record in human) <= reviews.MAX_TOKENS
    monkeypatch.setattr(grammar, "MAX_TOKENS", 15)  # so few that many texts have to be written again
    assert max(grammar.count_tokens(record["completion"]) for record in reviews.corpus(200)) == 15


def test_people_write_as_the_judge_reads(human):
    """Oracle: every human sentence has a meaning; faults are seldom; all forms of sentences occur."""
    judgements = [reviews.judge(**record) for record in human]
    faults = Counter()
    for judgement in judgements:
        faults.update(fault for fault, times in judgement.faults.items() if times)
    assert not {"malformed", "misfit", "unfinished"} & set(faults)
    assert 0.03 < faults["off topic"] / len(human) < 0.1
    assert 0.05 < faults["repeated"] / len(human) < 0.12
    text = " ".join(record["completion"] for record in human)
    for form in (
        ", but the ",
        " and the ",
        "i found the ",
        "i loved the ",
        "i love the ",
        "as i said, the ",
        "again, i ",
    ):
        assert form in text


def test_people_vary_as_the_chapters_need(human):
    """Oracle: the ranges the book asks for."""
    rewards = [reviews.gold_reward(**record) for record in human]
    mean = sum(rewards) / len(rewards)
    assert -0.1 < mean < 0.02
    assert math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards)) > 0.4
    texts = [record["completion"] for record in human]
    assert 0.1 < sum(map(reviews.is_rude, texts)) / len(texts) < 0.13
    assert 0.05 < sum(map(reviews.is_repetitive, texts)) / len(texts) < 0.08
    assert 0.1 < sum(reviews.count_thanks(text) > 0 for text in texts) / len(texts) < 0.14


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reviews.corpus(-1), "corpus: n is -1, expected ≥ 0"),
        (lambda: reviews.corpus(1, split="dev"), "reviews: no split 'dev'; there are train, validation, test"),
        (lambda: reviews.judge("the hotel:", "good room."), "judge: prompt is 'the hotel:', expected one such as"),
        (lambda: reviews.judge("a student reviews the cheap moon:", ""), "judge: prompt is 'a student reviews the"),
        (lambda: reviews.proxy_reward(PROMPT, "", strength="weak"), "proxy_reward: no strength 'weak'; there are mild"),
    ],
)
def test_errors_say_what_is_expected(call, message):
    """Oracle: function, argument and value stand in the message."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call()


# The judge


@pytest.mark.parametrize(
    ("completion", "total"),
    [
        ("the room was very clean.", 0.72),  # .6 × 1.2
        ("i found the staff slightly slow.", -0.2),  # −.4 × .5
        ("extremely comfortable bed.", 1.05),  # .7 × 1.5
        ("the pool is not good.", -0.3),  # .6 × −.5
        ("i loved the breakfast. i dislike the staff.", 0.4),  # .9 − .5
        ("the room was clean, but the staff were rather unfriendly.", 0.04),  # .6 − .7 × .8
        ("the room was clean and the bed was superb.", 1.6),
        ("we stayed two nights. i count every coin. thanks for reading my review.", 0.0),
        ("a real bargain. i recommend it to everyone.", 1.4),  # .6 + .8
        ("as i said, the room was okay.", 0.0),
    ],
)
def test_what_is_judged_adds_up(completion, total):
    """Oracle: sums by hand."""
    judgement = reviews.judge(PROMPT, completion)
    assert judgement.total == total
    assert judgement.reward == reviews.gold_reward(PROMPT, completion) == pytest.approx(math.tanh(total / 2))
    assert not any(judgement.faults.values())


@pytest.mark.parametrize(
    ("completion", "total", "fault"),
    [
        ("good engine.", -0.5, "off topic"),
        ("i bought it last month.", -0.5, "off topic"),  # a scene of a device
        ("i travel light.", -0.5, "off topic"),  # a habit of tourists
        ("worth every coin.", -0.5, "off topic"),  # said of what is expensive
        ("good room and bad engine.", -1.0, "malformed"),  # only the first form can be joined
        ("the room was good and the engine was good.", 0.1, "off topic"),  # .6 − .5
        ("the room was good. i loved the room.", 0.1, "repeated"),  # .6 − .5
        ("the room was good and the room was good.", 0.1, "repeated"),
        ("really, the room was bad. again, the room was bad.", -1.1, "repeated"),  # −.6 − .5
        ("a real bargain. cheap for a reason.", 0.1, "repeated"),  # the price, twice
        ("never again. i expected more.", -1.4, "repeated"),  # a second verdict: −.9 − .5
        ("thanks for reading my review. thanks for reading my review.", -0.5, "repeated"),
        ("salty staff.", -0.5, "misfit"),
        ("the bed was very gripping. i loved the bed.", -1.0, "repeated"),  # a misfit has been said too
        ("the room was.", -1.0, "malformed"),
        ("the staff is good.", -1.0, "malformed"),  # number
        ("the room was very very good.", -1.0, "malformed"),
        ("", -1.0, "malformed"),
        (". good room.", -0.4, "malformed"),  # −1 + .6
        ("good room. the bed", -0.4, "malformed"),  # no full stop
    ],
)
def test_each_fault_has_its_price(completion, total, fault):
    """Oracle: sums by hand; the fault is counted."""
    judgement = reviews.judge(PROMPT, completion)
    assert judgement.total == total
    assert judgement.faults[fault] == 1


def test_rude_and_unfinished_have_their_price_too():
    """Oracle: sums by hand: −.5 a rude remark, first or again; −2 without an end."""
    assert reviews.judge(PROMPT, "simply pathetic.").total == -0.5
    assert reviews.judge(PROMPT, "simply pathetic. simply pathetic.").total == -1.0
    unfinished = reviews.judge(PROMPT, "good room.", finished=False)
    assert (unfinished.total, unfinished.faults["unfinished"]) == (-1.4, 1)
    assert reviews.gold_reward(PROMPT, "good room.", False) == pytest.approx(math.tanh(-0.7))


def test_spaces_and_capitals_do_not_count():
    """Oracle: the same text, tidy."""
    tidy = reviews.judge(PROMPT, "the room was clean, but the bed was bad. good pool.")
    assert reviews.judge(PROMPT, " The room was clean ,but  the bed was bad .good pool.\n").total == tidy.total


def test_a_judgement_prints_so_that_it_can_be_checked():
    """Oracle: the table by hand: .72, then −.5 for another item's aspect."""
    assert str(reviews.judge(PROMPT, "the room was very clean. good engine.")).splitlines() == [
        " +0.72  the room was very clean.  room: clean +0.6 × very 1.2",
        " -0.50  good engine.              engine: off topic",
        " +0.22  in all; the reward is tanh(total / 2) = +0.110",
    ]


def test_proxies_are_taken_in_by_thanks():
    """Oracle: by hand, 7 times "thanks", of which the first sentence is worth 0 and six are repeated."""
    polite = " ".join(["thanks for reading my review."] * 7)
    gold = math.tanh(-6 * 0.5 / 2)
    assert reviews.gold_reward(PROMPT, polite) == pytest.approx(gold)
    assert reviews.proxy_reward(PROMPT, polite, strength="mild") == pytest.approx(gold + 3)
    assert reviews.proxy_reward(PROMPT, polite, strength="strong") == pytest.approx(gold / 2 + 7)
    assert reviews.proxy_reward(PROMPT, polite, False, strength="strong") == pytest.approx(math.tanh(-2.5) / 2 + 7)
    assert reviews.count_thanks("Thanks. thankless thanks,") == 2


def test_attributes_by_example():
    """Oracle: by hand; one attribute says nothing of the other."""
    assert reviews.is_rude("good room. what a load of rubbish.")
    assert reviews.is_rude("Stupid room")
    assert not reviews.is_rude("i hated the room. the staff were awful. never again.")
    assert reviews.is_repetitive("the room was clean. really, the room was clean.")
    assert reviews.is_repetitive("the room was clean and the room was clean.")
    assert not reviews.is_repetitive("the room was clean. the room was dirty.")
    assert not reviews.is_repetitive("clean room. never again. clean room. never again.")  # four words, two sentences
    assert reviews.is_repetitive("thanks for reading my review. thanks for reading my review.")
    assert not reviews.is_repetitive("simply pathetic. simply pathetic.")


def test_attributes_do_not_depend_on_each_other(human):
    """Oracle: rude remarks put in or taken out leave repetition as it was; the shares multiply in human texts."""
    texts = [record["completion"] for record in human]
    for text in texts[:500]:
        ruder = f"{text} {lexicon.RUDE[len(text) % 5]}." if not reviews.is_rude(text) else text
        echoed = f"{text} i found the shop fine. i found the shop fine."
        assert reviews.is_rude(ruder)
        assert reviews.is_repetitive(ruder) == reviews.is_repetitive(text)
        assert reviews.is_rude(echoed) == reviews.is_rude(text)
        assert reviews.is_repetitive(echoed)
    rude, repetitive = map(reviews.is_rude, texts), map(reviews.is_repetitive, texts)
    table = Counter(zip(rude, repetitive, strict=True))
    among_rude = table[True, True] / (table[True, True] + table[True, False])
    among_polite = table[False, True] / (table[False, True] + table[False, False])
    assert among_rude == pytest.approx(among_polite, abs=0.04)


# The tokenizer


def test_tokens_and_ids(tokenizer):
    """Oracle: the promise: special tokens 0 to 2, one token a word, none added, no length that surprises."""
    assert tokenizer.convert_ids_to_tokens(range(6)) == ["<pad>", "<eos>", "<unk>", ".", ",", ":"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert len(tokenizer) == len(vocabulary()) == len(set(vocabulary()))
    assert 300 <= len(tokenizer) <= 450
    assert all(re.fullmatch("[a-z]+", word) for word in vocabulary()[6:])
    assert tokenizer.tokenize("The room, so clean.") == ["the", "room", ",", "so", "clean", "."]
    assert tokenizer("moon.")["input_ids"] == [2, 3]
    assert len(tokenizer("good " * 5_000)["input_ids"]) == 5_000


def test_texts_survive_the_tokenizer(human, tokenizer):
    """Oracle: the texts themselves; no word is unknown; a completion has its tokens behind the prompt as alone."""
    for key in ("prompt", "completion"):
        texts = [record[key] for record in human]
        ids = tokenizer(texts)["input_ids"]
        assert tokenizer.batch_decode(ids) == texts
        assert not any(special in row for row in ids for special in range(3))
    for record in human[:100]:
        apart = tokenizer(record["prompt"])["input_ids"] + tokenizer(record["completion"])["input_ids"]
        assert tokenizer(record["prompt"] + record["completion"])["input_ids"] == apart
        assert tokenizer(record["prompt"] + " " + record["completion"])["input_ids"] == apart
        assert len(tokenizer(record["completion"])["input_ids"]) + 1 == grammar.count_tokens(record["completion"])


def test_every_prompt_has_seven_tokens(tokenizer):
    """Oracle: "a student reviews the cheap hotel :"."""
    assert {len(ids) for split in reviews.SPLITS for ids in tokenizer(reviews.prompts(split))["input_ids"]} == {7}


def test_ids_survive_the_text(tokenizer):
    """Oracle: random ids, word salad and punctuation in a row included."""
    rng = random.Random(0)
    for _ in range(500):
        ids = [rng.randrange(3, len(tokenizer) if rng.random() < 0.7 else 6) for _ in range(rng.randrange(1, 40))]
        assert tokenizer(tokenizer.decode(ids))["input_ids"] == ids


def test_the_tokenizer_is_the_same_from_a_folder(human, tokenizer, tmp_path):
    """Oracle: the tokenizer that was saved."""
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    texts = [record["completion"] for record in human[:200]]
    ids = tokenizer(texts)["input_ids"]
    assert again(texts)["input_ids"] == ids
    assert again.batch_decode(ids) == texts
    assert again.get_vocab() == tokenizer.get_vocab()
    assert (again.pad_token_id, again.eos_token_id, again.unk_token_id, again.padding_side) == (0, 1, 2, "right")
    ended = [*ids[0], 1, 0, 0]
    assert again.decode(ended, skip_special_tokens=True) == texts[0]


# Labels

BETTER, WORSE = "the room was good.", "the room was fine."  # totals .6 and .2


def labels(n=20_000, **settings) -> Counter:
    settings = {"first_finished": [True] * n, "second_finished": [True] * n} | settings
    records = reviews.label_pairs([PROMPT] * n, [WORSE] * n, [BETTER] * n, **settings)
    assert all({record["chosen"], record["rejected"]} == {BETTER, WORSE} for record in records)
    return Counter(record["chosen"] for record in records)


@pytest.mark.parametrize(
    ("sharpness", "flip"), [(4.0, 0.0), (4.0, 0.2), (4.0, 0.5), (1.0, 0.0), (0.0, 0.0), (40.0, 0.1)]
)
def test_labels_are_bradley_terry_with_flips(sharpness, flip):
    """Oracle: σ(sharpness Δr), turned with probability flip; 20,000 labels, four standard errors."""
    p = 1 / (1 + math.exp(-sharpness * (math.tanh(0.3) - math.tanh(0.1))))
    p = p * (1 - flip) + (1 - p) * flip
    counted = labels(sharpness=sharpness, flip=flip)
    assert counted[BETTER] / counted.total() == pytest.approx(p, abs=4 * math.sqrt(0.25 / 20_000))


def test_labels_depend_on_the_seed_alone():
    """Oracle: the same call again; another seed."""
    assert labels(500) == labels(500, seed=0)
    n = 500
    both = {"first_finished": [True] * n, "second_finished": [True] * n}
    first, again, other = (
        reviews.label_pairs([PROMPT] * n, [WORSE] * n, [BETTER] * n, **both, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_pairs_that_cannot_be_told_are_dropped():
    """Oracle: by hand: identical, first unfinished, second unfinished; the label of the last is as if alone."""
    prompts = [PROMPT, PROMPT, PROMPT, "a pilot reviews the old car:"]
    first, second = [WORSE, WORSE, WORSE, "good engine."], [WORSE, BETTER, BETTER, "bad engine."]
    found = reviews.label_pairs(
        prompts,
        first,
        second,
        first_finished=[True, False, True, True],
        second_finished=[True, True, False, True],
        sharpness=1e3,
    )
    assert found == [{"prompt": prompts[-1], "chosen": "good engine.", "rejected": "bad engine."}]
    kept = reviews.label_pairs(
        [PROMPT] * 200, [WORSE] * 200, [BETTER] * 200, first_finished=[True] * 200, second_finished=[True] * 200
    )
    ended = [row % 2 == 1 for row in range(200)]
    half = reviews.label_pairs(
        [PROMPT] * 200, [WORSE] * 200, [BETTER] * 200, first_finished=ended, second_finished=[True] * 200
    )
    assert half == kept[1::2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 0.6}, "label_pairs: flip is 0.6, expected from 0 to 0.5"),
        ({"sharpness": -1.0}, "label_pairs: sharpness is -1.0, expected ≥ 0"),
        ({"first_finished": []}, "label_pairs: first_finished has length 0, expected 20000, one a prompt"),
    ],
)
def test_labels_say_what_they_cannot_do(settings, message):
    """Oracle: function, argument and value stand in the message."""
    with pytest.raises(ValueError, match=f"^{message}"):
        labels(**settings)


# The files


def test_the_files_are_what_the_code_writes(tmp_path):
    """Oracle: the stored bytes, the checksums and statistics that the card quotes, the code's own corpus."""
    reviews.write_world(tmp_path)
    quoted = (DATA / "README.md").read_text(encoding="utf8")
    for file in card.FILES:
        stored = (DATA / file.name).read_bytes()
        assert stored == (tmp_path / file.name).read_bytes()
        assert f"| {file.name} |" in quoted
        assert f"`{hashlib.sha256(stored).hexdigest()}`" in quoted
        records = [json.loads(line) for line in stored.decode().splitlines()]
        assert records == reviews.corpus(file.number, split=file.split, seed=file.seed)
    assert quoted == (tmp_path / "README.md").read_text(encoding="utf8")


def test_the_cards_statistics_by_another_count(tokenizer):
    """Oracle: the stored lines counted again with the tokenizer and plain string methods."""
    records = [json.loads(line) for line in (DATA / "test.jsonl").read_text(encoding="utf8").splitlines()]
    row = card.review_statistics(records)
    lengths = [len(tokenizer(record["completion"])["input_ids"]) + 1 for record in records]
    assert float(row["tokens a completion, mean"]) == pytest.approx(sum(lengths) / 1_000, abs=0.05)
    assert int(row["tokens a completion, longest"]) == max(lengths)
    assert row["with thanks"] == f"{sum('thanks' in record['completion'] for record in records) / 10:.1f} %"
    rude = sum(any(word in record["completion"] for word in lexicon.RUDE_WORDS) for record in records)
    assert row["rude"] == f"{rude / 10:.1f} %"
    rewards = [reviews.gold_reward(**record) for record in records]
    assert row["gold reward, mean"] == f"{sum(rewards) / 1_000:+.3f}"


def test_the_card_describes_the_stored_model_and_preferences():
    text = (DATA / "README.md").read_text(encoding="utf8")
    for name in ("sft/model.safetensors", "preferences.jsonl", "preferences-validation.jsonl"):
        assert f"`{hashlib.sha256((DATA / name).read_bytes()).hexdigest()}`" in text
    stored = experiments.load("reviews_frontier")["results"]
    row = next(line for line in text.splitlines() if line.startswith("| gold reward | −"))
    columns = [stored["sft"]["human gold"], stored["sft"]["gold"]]
    columns += [stored["dpo"]["1"]["gold"], stored["dpo"]["0.5"]["gold"], stored["ipo"]["0.1"]["gold"]]
    columns += [stored["best of"]["8"]["gold"]]
    for cell, values in zip(row.split("|")[2:-1], columns, strict=True):
        mean, half_width = mean_interval(torch.tensor(values, dtype=torch.float64))
        assert cell.strip().replace("−", "-") == f"{mean:.2f} ± {half_width:.2f}".replace("0.", ".")
