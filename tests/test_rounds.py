"""Sample, score, rank, train: against the same steps taken one by one, and what each ranking makes of candidates."""

import copy
import random
from dataclasses import replace

import pytest
import torch

from dapedu.data import Sequences
from dapedu.models import score
from dapedu.sampling import Samples, sample
from dapedu.train import (
    METHODS,
    Settings,
    best_and_worst,
    best_of,
    by_likelihood,
    minus_kl,
    ranked,
    train_in_rounds,
    train_preference,
    two_by_two,
)
from tests.train_cases import PLAIN, PROMPTS, WORDS, assert_same_weights
from tests.words import opinionated, word_tokenizer

torch.set_num_threads(1)
SETTINGS = Settings(**PLAIN | {"steps": 3, "batch_size": 4, "lr": 1e-3, "seed": 5})


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(WORDS)


@pytest.fixture
def model():
    return opinionated(vocab_size=9, n_positions=32)


def count_a(samples: Samples) -> list[int]:
    return [text.split().count("a") for text in samples.completions]


def go(model, tokenizer, reward=count_a, **options):
    defaults = {"method": "rrhf", "settings": SETTINGS, "max_new_tokens": 8, "progress": False}
    return train_in_rounds(model, tokenizer, PROMPTS, reward, **defaults | options)


# ---- the loop ----


@pytest.mark.parametrize("method", ["sft", "slic-hf", "rrhf", "dpo"])
def test_two_rounds_are_the_same_four_steps_taken_twice(model, tokenizer, method):
    by_hand = copy.deepcopy(model)
    done = go(model, tokenizer, method=method, rounds=2, candidates=3)
    kind = {"demonstrations": best_of, "preferences": best_and_worst, "rankings": ranked}[METHODS[method].records]
    for number, one in enumerate(done):
        seed = 5 + 1_000_003 * number
        asked = [prompt for prompt in PROMPTS[20 * number : 20 * number + 20] for _ in range(3)]
        samples = sample(by_hand, tokenizer, asked, max_new_tokens=8, seed=seed)
        rewards = torch.tensor(count_a(samples), dtype=torch.float64).view(20, 3)
        assert samples == one.samples
        assert torch.equal(rewards, one.rewards)
        records = kind(samples, rewards)
        assert records == one.records
        log = train_preference(
            by_hand, tokenizer, records, method=method, settings=replace(SETTINGS, seed=seed), progress=False
        )
        assert [row["loss"] for row in log] == [row["loss"] for row in one.log]
    assert_same_weights(model, by_hand, atol=0)


def test_a_reference_of_ones_own_is_that_of_every_round(model, tokenizer):
    """Oracle: the log-ratios of the second round begin where the first has led, not at 0."""
    options = {"method": "dpo", "rounds": 2, "settings": replace(SETTINGS, steps=6)}
    fixed = go(copy.deepcopy(model), tokenizer, reference=model, **options)
    moving = go(copy.deepcopy(model), tokenizer, **options)
    assert fixed[0].log[0]["margin"] == moving[0].log[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert moving[1].log[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert abs(fixed[1].log[0]["margin"]) > 0.1


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(model, tokenizer, tmp_path):
    whole, settings = copy.deepcopy(model), replace(SETTINGS, checkpoint_every=2)
    expected = go(whole, tokenizer, rounds=3, settings=settings)
    calls = []

    def interrupted(samples: Samples) -> list[int]:
        calls.append(len(samples))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return count_a(samples)

    with pytest.raises(KeyboardInterrupt):
        go(copy.deepcopy(model), tokenizer, interrupted, rounds=3, settings=settings, output=tmp_path)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["round-1", "round-2"]
    again = go(model, tokenizer, rounds=3, settings=settings, output=tmp_path, resume=True)
    assert [one.records for one in again] == [one.records for one in expected]
    assert_same_weights(model, whole, atol=0)


def test_rounds_raise_the_reward(model, tokenizer):
    settings = replace(SETTINGS, steps=20, batch_size=8)
    done = train_in_rounds(
        model, tokenizer, PROMPTS * 6, count_a, method="rrhf", settings=settings, rounds=3, max_new_tokens=8,
        progress=False,
    )  # fmt: skip
    means = [float(one.rewards.mean()) for one in done]
    assert means[0] + 0.5 < means[2]


def test_after_sees_each_round_as_it_ends(model, tokenizer):
    seen = []
    go(model, tokenizer, rounds=2, after=lambda one: seen.append((one, copy.deepcopy(model))))
    done = go(again := opinionated(vocab_size=9, n_positions=32), tokenizer, rounds=2)
    assert [one.records for one, _ in seen] == [one.records for one in done]
    assert_same_weights(seen[1][1], again, atol=0)
    with pytest.raises(AssertionError):
        assert_same_weights(seen[0][1], again, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "drpo"}, "no method 'drpo'"),
        ({"rounds": 0}, "rounds is 0"),
        ({"candidates": 1}, "candidates is 1"),
        ({"rounds": 41}, "40 prompts for 41 rounds"),
        ({"reward": lambda samples: [1.0]}, r"shape \(1,\), expected \(160,\)"),
        ({"reward": lambda samples: [float("nan")] * 160}, "NaN for sample 0"),
        ({"method": "dpo", "reward": lambda samples: [0.0] * 160}, "round 1 leave no record"),
        ({"method": "dpo", "strengths": {"tau": 1}}, "dpo has no strength tau"),
    ],
)
def test_what_cannot_be_is_refused_and_the_model_left_alone(model, tokenizer, options, says):
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=says):
        go(model, tokenizer, **options)
    assert_same_weights(model, before, atol=0)


# ---- rankings ----


def candidates(texts: list[str], *, prompts: int = 1, unfinished: tuple[int, ...] = ()) -> Samples:
    k = len(texts) // prompts
    return Samples(
        [f"p{row // k}" for row in range(len(texts))],
        texts,
        [row not in unfinished for row in range(len(texts))],
        Sequences([[3, 4]] * len(texts), [1] * len(texts)),
    )


def test_best_of_takes_the_first_of_the_best_and_no_text_without_an_end():
    samples = candidates(["a", "b", "c", "d", "", "f"], prompts=3, unfinished=(2,))
    rewards = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 0.0]])
    assert best_of(samples, rewards) == [{"prompt": "p0", "completion": "a"}]


def test_best_and_worst_leaves_out_ties():
    samples = candidates(["a", "b", "c", "d", "e", "f"], prompts=2)
    rewards = torch.tensor([[0.5, 2.0, -1.0], [1.0, 1.0, 1.0]])
    assert best_and_worst(samples, rewards) == [{"prompt": "p0", "chosen": "b", "rejected": "c"}]


def test_two_by_two_turns_each_pair_the_right_way():
    samples = candidates(["a", "b", "c", "d", "e", "f", "g", "h"], prompts=2, unfinished=(7,))
    rewards = torch.tensor([[0.0, 1.0, 3.0, 2.0], [1.0, 1.0, 0.0, 1.0]])
    assert two_by_two(samples, rewards) == [
        {"prompt": "p0", "chosen": "b", "rejected": "a"},
        {"prompt": "p0", "chosen": "c", "rejected": "d"},
    ]
    with pytest.raises(ValueError, match="two_by_two: 3 candidates a prompt, expected an even number"):
        two_by_two(candidates(["a", "b", "c", "d", "e", "f"], prompts=2), torch.zeros(2, 3))


def test_ranked_keeps_all_candidates_and_drops_prompts_with_an_empty_one():
    samples = candidates(["a", "b", "c", ""], prompts=2)
    rewards = torch.tensor([[0.0, 1.0], [3.0, 2.0]])
    assert ranked(samples, rewards) == [{"prompt": "p0", "completions": ["a", "b"], "rewards": [0.0, 1.0]}]


@pytest.mark.parametrize("neighbour", ["below", "above", "random"])
def test_by_likelihood_pairs_each_good_text_with_the_bad_neighbour_asked_for(model, tokenizer, neighbour):
    asked = [prompt for prompt in PROMPTS[:12] for _ in range(6)]
    samples = sample(model, tokenizer, asked, max_new_tokens=8, seed=1)
    good = torch.tensor([["a" in text.split() for text in samples.completions]]).view(12, 6)
    logps = score(model, samples.sequences).view(12, 6)
    records = by_likelihood(model, neighbour=neighbour, seed=3)(samples, good)
    expected, rng = [], random.Random(3)
    for prompt in range(12):
        row = range(6 * prompt, 6 * prompt + 6)
        fine = [n for n in range(6) if good[prompt, n]]
        poor = [n for n in range(6) if not good[prompt, n]]
        if not fine:  # then all are equally good
            continue
        for n in fine if poor else []:
            gaps = {m: float(logps[prompt, n] - logps[prompt, m]) for m in poor}
            below = [m for m in poor if gaps[m] >= 0]
            above = [m for m in poor if gaps[m] < 0]
            side = {"below": below or above, "above": above or below, "random": poor}[neighbour]
            m = min(side, key=lambda other: abs(gaps[other]))
            if neighbour == "random":
                m = rng.choice(sorted(poor, key=lambda other: float(logps[prompt, other])))
            else:
                rng.random()
            pair = [samples.completions[row[place]] for place in (n, m)]
            if all(samples.completions[row[place]] and samples.finished[row[place]] for place in (n, m)):
                expected.append({"prompt": PROMPTS[prompt], "chosen": pair[0], "rejected": pair[1]})
    assert len(expected) > 5
    assert records == expected


def test_by_likelihood_knows_its_neighbours(model):
    with pytest.raises(ValueError, match="no neighbour 'left'; there are below, above, random"):
        by_likelihood(model, neighbour="left")


# ---- the KL term ----


def test_minus_kl_follows_the_policy(model, tokenizer):
    reference = copy.deepcopy(model)
    reward = minus_kl(count_a, model, reference, beta=0.5)
    samples = sample(model, tokenizer, PROMPTS, max_new_tokens=8)
    plain = torch.tensor(count_a(samples), dtype=torch.float64)
    torch.testing.assert_close(reward(samples), plain)
    go(model, tokenizer)
    log_ratios = (score(model, samples.sequences) - score(reference, samples.sequences)).double()
    assert log_ratios.abs().max() > 0.01
    torch.testing.assert_close(reward(samples), plain - 0.5 * log_ratios)
    with pytest.raises(ValueError, match="beta is -1"):
        minus_kl(count_a, model, reference, beta=-1)
