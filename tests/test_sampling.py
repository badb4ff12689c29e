"""Samples against transformers' generate, against exact probabilities and against reading them again."""

import pytest
import scipy.stats
import torch
from transformers import GenerationConfig

from dapedu.data import encode
from dapedu.sampling import Samples, best_of_n, sample
from tests.words import opinionated, word_tokenizer

torch.set_num_threads(1)

WORDS = "a b c d e"  # ids 3 … 7
NO_END = "p q r a b c d e"  # the same ids, three more words in the special tokens' place
PROMPTS = ["a b", "e", "c c a b d", "b", "d a b"]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(WORDS)


@pytest.fixture(scope="module")
def model():
    return opinionated(vocab_size=8)


@torch.no_grad()
def next_token(model, ids, *, temperature, top_k):
    """Probabilities of the next token, special ones excluded, in float64."""
    logits = model(torch.tensor([ids])).logits[0, -1].double()
    logits[[0, 2]] = -torch.inf
    if top_k:
        logits[logits < logits.sort(descending=True).values[top_k - 1]] = -torch.inf
    return torch.softmax(logits / temperature, dim=-1)


# ---- distribution ----


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.5, 0), (1.7, 3)])
def test_samples_have_the_exact_probabilities(temperature, top_k, model, tokenizer):
    """Oracle: softmax(logits / temperature) of each completion of up to two tokens, by Pearson's chi-square.

    The prompts differ in length and share batches, so padding, positions and the cache are tested too; the model's own
    settings would change all of it.
    """
    model.generation_config = GenerationConfig(repetition_penalty=3.0, top_p=0.5, temperature=0.1, eos_token_id=4)
    prompts = ["a b", "c c a b d"]
    samples = sample(
        model,
        tokenizer,
        prompts * 10_000,
        max_new_tokens=2,
        temperature=temperature,
        top_k=top_k,
        batch_size=20_000,
    )
    for prompt in prompts:
        head = tokenizer(prompt)["input_ids"]
        first = next_token(model, head, temperature=temperature, top_k=top_k)
        exact = {(1,): first[1]}
        for token in range(3, 8):
            second = next_token(model, [*head, token], temperature=temperature, top_k=top_k)
            exact |= {(token, other): first[token] * second[other] for other in range(1, 8) if other != 2}
        counts = dict.fromkeys(exact, 0)
        for ids in samples.sequences.input_ids:
            if ids[: len(head)] == head and len(ids) <= len(head) + 2:
                counts[tuple(ids[len(head) :])] += 1
        assert sum(counts.values()) == 10_000
        assert not any(counts[outcome] for outcome, p in exact.items() if p == 0)
        frequent = [outcome for outcome, p in exact.items() if 10_000 * p > 5]
        observed = torch.tensor([counts[outcome] for outcome in frequent])
        expected = torch.stack([10_000 * exact[outcome] for outcome in frequent])
        if (10_000 - expected.sum()) > 1e-6:  # what is rare, all together
            observed, expected = (torch.cat([x, 10_000 - x.sum(0, keepdim=True)]) for x in (observed, expected))
        assert len(expected) >= 7
        assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3
    assert model.generation_config.repetition_penalty == 3.0


def test_temperature_zero_takes_the_likeliest_token(model, tokenizer):
    """Oracle: transformers' greedy generate, each prompt alone; and argmax, one token at a time."""
    model.generation_config = GenerationConfig()
    samples = sample(model, tokenizer, PROMPTS, max_new_tokens=9, temperature=0, batch_size=3)
    for ids, start in zip(samples.sequences.input_ids, samples.sequences.prompt_lengths, strict=True):
        greedy = model.generate(
            torch.tensor([ids[:start]]),
            attention_mask=torch.ones(1, start),
            do_sample=False,
            max_new_tokens=9,
            eos_token_id=1,
            pad_token_id=0,
            suppress_tokens=[0, 2],
        )
        assert ids == greedy[0].tolist()
        for t in range(start, len(ids)):
            assert ids[t] == next_token(model, ids[:t], temperature=1, top_k=0).argmax()
    again = sample(model, tokenizer, PROMPTS, max_new_tokens=9, temperature=1, top_k=1, seed=3)
    assert again == samples


def test_special_tokens_are_never_drawn(tokenizer):
    """Oracle: a model that wants nothing else; its vocabulary is larger than the tokenizer's, too."""
    model = opinionated(vocab_size=12)
    wanted = torch.tensor([0, 2, 8, 9, 10, 11])
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(1)
        model.transformer.wte.weight[wanted] += 1
        assert model(torch.tensor([[3]])).logits[0, -1].softmax(dim=-1)[wanted].sum() > 0.999
    samples = sample(model, tokenizer, ["a"] * 200, max_new_tokens=8)
    drawn = {
        token
        for ids, start in zip(samples.sequences.input_ids, samples.sequences.prompt_lengths, strict=True)
        for token in ids[start:]
    }
    assert drawn == {1, 3, 4, 5, 6, 7}


# ---- what comes back ----


def test_text_tokens_and_ends_agree(model, tokenizer):
    """Oracle: encoding the text again gives the tokens drawn, with the end-of-sequence token where it was drawn."""
    samples = sample(model, tokenizer, PROMPTS * 20, max_new_tokens=6)
    again = encode(samples.prompts, samples.completions, tokenizer)
    assert samples.prompts == PROMPTS * 20
    assert samples.sequences.prompt_lengths == again.prompt_lengths
    assert {True, False} == set(samples.finished)
    for row, finished in enumerate(samples.finished):
        ids = again.input_ids[row]
        assert samples.sequences.input_ids[row] == (ids if finished else ids[:-1])
        assert finished or len(samples.completions[row].split()) == 6
    assert samples.sequences.lengths.max() == 6


def test_without_an_end_no_completion_ends(model):
    """Oracle: every completion has all its tokens."""
    tokenizer = word_tokenizer(NO_END, special={})
    samples = sample(model, tokenizer, ["a", "b c"], max_new_tokens=12)
    assert samples.finished == [False, False]
    assert [len(completion.split()) for completion in samples.completions] == [12, 12]


# ---- seeds ----


def test_the_seed_decides_and_leaves_other_random_numbers_alone(model, tokenizer):
    """Oracle: equal samples for equal seeds; the caller's generator goes on as if nothing had happened."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, third = (sample(model, tokenizer, PROMPTS * 4, max_new_tokens=8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert first == second
    assert first != third


def test_a_batch_does_not_depend_on_the_others(model, tokenizer):
    """Oracle: two first batches, one over sooner than the other; the batches after them are the same."""
    samples = [
        sample(model, tokenizer, [first, "e a", "b d", "c c"], max_new_tokens=14, batch_size=1, seed=2)
        for first in ("a b", "e e")
    ]
    assert samples[0].sequences.lengths[0] != samples[1].sequences.lengths[0]
    assert samples[0].select([1, 2, 3]) == samples[1].select([1, 2, 3])


def test_batches_and_seeds_share_no_random_numbers(model):
    """Oracle: eight batches of one prompt with two seeds each: sixteen different texts of 12 words."""
    tokenizer = word_tokenizer(NO_END, special={})
    samples = [sample(model, tokenizer, ["a b"] * 8, max_new_tokens=12, batch_size=1, seed=seed) for seed in (0, 1)]
    assert len({completion for s in samples for completion in s.completions}) == 16


# ---- best of n ----


def count_a(samples: Samples) -> list[float]:
    return [float(completion.split().count("a")) for completion in samples.completions]


def test_best_of_n_keeps_the_first_of_the_best(model, tokenizer):
    """Oracle: the same samples, searched in plain Python, ties among them."""
    best = best_of_n(model, tokenizer, PROMPTS, count_a, n=8, max_new_tokens=5, seed=4)
    drawn = sample(model, tokenizer, [p for p in PROMPTS for _ in range(8)], max_new_tokens=5, seed=4)
    rewards = count_a(drawn)
    ties = 0
    for number, prompt in enumerate(PROMPTS):
        mine = range(8 * number, 8 * number + 8)
        winner = max(mine, key=lambda row: (rewards[row], -row))
        ties += [rewards[row] for row in mine].count(rewards[winner]) > 1
        assert best.prompts[number] == prompt
        assert best.select([number]) == drawn.select([winner])
    assert ties


def test_best_of_one_is_a_sample(model, tokenizer):
    """Oracle: `sample`; a tensor of rewards is as good as a list."""
    best = best_of_n(model, tokenizer, PROMPTS, lambda samples: torch.zeros(len(samples)), n=1, max_new_tokens=9)
    assert best == sample(model, tokenizer, PROMPTS, max_new_tokens=9)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda samples: [1.0], r"reward gives shape \(1,\), expected \(10,\)"),
        (lambda samples: [0.0] * 7 + [float("nan")] + [0.0] * 2, "reward gives NaN for sample 7"),
    ],
)
def test_rewards_that_cannot_be_compared(reward, message, model, tokenizer):
    """Oracle: the message names shape or sample."""
    with pytest.raises(ValueError, match=f"^best_of_n: {message}"):
        best_of_n(model, tokenizer, PROMPTS, reward, n=2, max_new_tokens=2)


# ---- messages ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1, expected at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"prompts": []}, "prompts is empty"),
        ({"prompts": ["a", " "]}, "prompt 1 has no tokens"),
        ({"max_new_tokens": 12}, "prompt 2 has 5 tokens, which with max_new_tokens 12 is more than the 16"),
    ],
)
def test_what_cannot_be_sampled(arguments, message, model, tokenizer):
    """Oracle: the message names the argument and its value."""
    with pytest.raises(ValueError, match=f"^(sample|encode): {message}"):
        sample(model, tokenizer, **({"prompts": PROMPTS, "max_new_tokens": 2} | arguments))


def test_no_samples_have_no_best(model, tokenizer):
    """Oracle: the message names n."""
    with pytest.raises(ValueError, match=r"^best_of_n: n is 0"):
        best_of_n(model, tokenizer, PROMPTS, count_a, n=0)


def test_progress_counts_prompts(model, tokenizer, capsys):
    """Oracle: the bar's last state; silence without it."""
    sample(model, tokenizer, PROMPTS, max_new_tokens=2, batch_size=2)
    assert capsys.readouterr().err == ""
    sample(model, tokenizer, PROMPTS, max_new_tokens=2, batch_size=2, progress=True)
    assert "5/5" in capsys.readouterr().err
