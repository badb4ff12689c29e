"""SPIN's two experiments in small: against the same steps taken one by one, and against what can be said by hand."""

import copy
from dataclasses import replace

import pytest
import torch

from dapedu.data import Sequences
from dapedu.experiments import spin
from dapedu.experiments.spin import against_itself, self_play
from dapedu.experiments.spin_exact import _factor, contraction_unit
from dapedu.sampling import Samples, sample
from dapedu.train import Settings, train_preference
from tests.train_cases import PLAIN, RECORDS, WORDS, assert_same_weights
from tests.words import opinionated, word_tokenizer

torch.set_num_threads(1)
PEOPLE = RECORDS["demonstrations"]  # forty texts
SETTINGS = Settings(**PLAIN | {"steps": 3, "batch_size": 4, "lr": 1e-3, "seed": 5})
SHARE = 12  # texts that three steps of four read
APART = 1_000_003


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(WORDS)


@pytest.fixture
def model():
    return opinionated(vocab_size=9, n_positions=80)


def test_against_itself_rejects_what_the_policy_writes(model, tokenizer):
    """Oracle: `sample`; a random model now and then writes nothing at all."""
    records = against_itself(model, tokenizer, PEOPLE, seed=3)
    own = sample(model, tokenizer, [record["prompt"] for record in PEOPLE], seed=3).completions
    assert "" in own
    assert records == [
        {"prompt": theirs["prompt"], "chosen": theirs["completion"], "rejected": text}
        for theirs, text in zip(PEOPLE, own, strict=True)
        if text
    ]


def test_against_itself_leaves_out_texts_without_an_end(model, tokenizer, monkeypatch):
    def written(policy, tokenizer, prompts, **options):
        return Samples(prompts, ["a", "b", "", "d"], [True, False, True, True], Sequences([[3, 4]] * 4, [1] * 4))

    monkeypatch.setattr(spin, "sample", written)
    assert against_itself(model, tokenizer, PEOPLE[:4]) == [
        {"prompt": PEOPLE[n]["prompt"], "chosen": PEOPLE[n]["completion"], "rejected": text}
        for n, text in ((0, "a"), (3, "d"))
    ]


def test_a_greedy_opponent_writes_its_likeliest_tokens_whatever_the_seed(model, tokenizer):
    """Oracle: the model's argmax, token by token."""
    records = against_itself(model, tokenizer, PEOPLE, temperature=0.0, seed=3)
    assert records == against_itself(model, tokenizer, PEOPLE, temperature=0.0, seed=4)
    assert records
    for record in records[:5]:
        tokens = tokenizer(record["prompt"] + " " + record["rejected"])["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0]
        logits[:, [tokenizer.pad_token_id, tokenizer.unk_token_id]] = -torch.inf  # never drawn
        first = len(record["prompt"].split())
        assert logits.argmax(dim=1)[first - 1 :].tolist() == [*tokens[first:], tokenizer.eos_token_id]


@pytest.mark.parametrize("previous", [True, False])
def test_iterations_are_the_same_steps_taken_by_hand(model, tokenizer, previous):
    by_hand, seen = copy.deepcopy(model), []
    self_play(
        model,
        tokenizer,
        PEOPLE,
        settings=SETTINGS,
        beta=0.7,
        iterations=3,
        previous=previous,
        after=lambda: seen.append(copy.deepcopy(model)),
    )
    assert len(seen) == 3
    last = []
    for number, policy in enumerate(seen):
        settings = replace(SETTINGS, seed=5 + APART * number)
        theirs = PEOPLE[SHARE * number : SHARE * (number + 1)]
        fresh = against_itself(by_hand, tokenizer, theirs, seed=settings.seed)
        records = fresh + last if previous else fresh
        train_preference(
            by_hand, tokenizer, records, method="spin", strengths={"beta": 0.7}, settings=settings, progress=False
        )
        assert_same_weights(policy, by_hand, atol=0)
        last = fresh
    assert_same_weights(model, by_hand, atol=0)


def test_imitation_reads_the_same_texts_and_nothing_else(model, tokenizer):
    """Oracle: supervised fine-tuning by hand on the same thirds of people's texts."""
    by_hand = copy.deepcopy(model)
    self_play(model, tokenizer, PEOPLE, method="sft", settings=SETTINGS, iterations=3)
    for number in range(3):
        settings = replace(SETTINGS, seed=5 + APART * number)
        theirs = PEOPLE[SHARE * number : SHARE * (number + 1)]
        train_preference(by_hand, tokenizer, theirs, method="sft", settings=settings, progress=False)
    assert_same_weights(model, by_hand, atol=0)


def test_exact_iterations_shrink_the_error_as_the_theorem_says():
    """Oracle: 1 − 1/λ, and one iterate by it from the other; the start is the same for every λ."""
    found = contraction_unit(
        seed=0,
        betas=[1.0, 2.0],
        iterations=1,
        steps=150,
        lr=4e-3,
        sft_steps=30,
        shape={"n_symbols": 3, "length": 2, "n_prompts": 2},
    )
    assert found["1"]["factor"] == pytest.approx(0.0, abs=0.02)
    assert found["2"]["factor"] == pytest.approx(0.5, abs=0.02)
    assert found["2"]["rest"] < 0.1
    assert found["1"]["kl"][0] == found["2"]["kl"][0] == pytest.approx(found["2"]["exact_kl"][0], rel=1e-4)
    assert found["2"]["kl"][1] == pytest.approx(found["2"]["exact_kl"][1], rel=0.05)
    assert found["1"]["kl"][1] < 0.001 * found["1"]["kl"][0]


def test_the_factor_of_a_table_that_was_made_with_one():
    """Oracle: e_after = −1.5 e_before + noise at right angles to it, whose size is known."""
    human = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], dtype=torch.float64))
    error = torch.tensor([[0.3, -0.2, 0.1], [-0.4, 0.5, 0.2]], dtype=torch.float64)
    moved = torch.tensor([[7.0], [-4.0]], dtype=torch.float64)  # a normaliser, which is not an error
    factor, rest = _factor(human, human - error, human + 1.5 * error + moved)
    assert factor == pytest.approx(-1.5)
    assert rest == pytest.approx(0.0, abs=1e-12)
    weights = human.exp()
    centred = error - (weights * error).sum(dim=1, keepdim=True)
    aside = torch.tensor([[1.0, 2.0, 4.0], [3.0, 1.0, 0.0]], dtype=torch.float64)
    aside -= (weights * aside).sum(dim=1, keepdim=True)
    aside -= (weights * aside * centred).sum() / (weights * centred.square()).sum() * centred
    factor, rest = _factor(human, human - error, human + 1.5 * error - aside)
    size = lambda ratios: (weights * ratios.square()).sum().sqrt()  # noqa: E731
    assert factor == pytest.approx(-1.5)
    assert rest == pytest.approx((size(aside) / size(-1.5 * centred + aside)).item())
