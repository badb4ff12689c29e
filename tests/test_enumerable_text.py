"""The enumerable world as text: what is written, read and drawn agrees with the tables."""

import itertools

import pytest
import torch

from dapedu.data import Sequences, encode_prompts
from dapedu.enumerable import completion_logps, fit_humans, make_tokenizer, make_world, prompt_texts, reward_of_samples
from dapedu.models import score, tiny_gpt2
from dapedu.sampling import Samples, sample

torch.set_num_threads(1)

N = 8_000  # samples


@pytest.fixture(scope="module")
def world():
    return make_world(n_symbols=3, length=2, n_prompts=4, seed=1)


@pytest.fixture(scope="module")
def tokenizer(world):
    return make_tokenizer(world)


@pytest.fixture(scope="module")
def model(world):
    model = tiny_gpt2("tiny", vocab_size=3, n_positions=world.n_positions)
    fit_humans(model, world, steps=40)
    return model


def everything(world, tokenizer) -> Samples:
    """Each completion of each prompt, once, in no order."""
    places = [(row, column) for row in range(len(world.prompts)) for column in range(len(world.completions))]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0)).tolist()
    rows, columns = zip(*(places[place] for place in order), strict=True)
    ids = torch.cat([world.prompts[list(rows)], world.completions[list(columns)]], dim=1).tolist()
    texts = prompt_texts(world)
    return Samples(
        [texts[row] for row in rows],
        tokenizer.batch_decode([row[2:] for row in ids]),
        [False] * len(ids),
        Sequences(ids, [2] * len(ids)),
    )


def test_symbols_are_letters_and_read_as_they_were_written(world, tokenizer):
    """Oracle: the alphabet; ids are the world's."""
    texts = prompt_texts(world)
    assert encode_prompts(texts, tokenizer) == world.prompts.tolist()
    assert texts == [" ".join("abc"[symbol] for symbol in prompt) for prompt in world.prompts.tolist()]
    written = tokenizer.batch_decode(world.completions.tolist())
    assert written[:4] == ["a a", "a b", "a c", "b a"]
    assert tokenizer(written)["input_ids"] == world.completions.tolist()
    assert len(tokenizer) == 3
    assert tokenizer.eos_token_id is None
    assert make_tokenizer(make_world(n_symbols=26, length=1)).decode([25]) == "z"
    with pytest.raises(ValueError, match=r"^make_tokenizer: the world has 27 symbols, expected at most 26"):
        make_tokenizer(make_world(n_symbols=27, length=1))


def test_the_reward_of_a_sample_is_that_of_its_text(world, tokenizer):
    """Oracle: the gold reward read off the letters: the prompt's first one, less repetitions."""
    samples = everything(world, tokenizer)
    expected = []
    for prompt, completion in zip(samples.prompts, samples.completions, strict=True):
        letters = completion.split()
        repeated = sum(one == other for one, other in itertools.pairwise(letters))
        expected.append(letters.count(prompt[0]) - repeated)
    assert reward_of_samples(world, world.rewards)(samples).tolist() == expected
    assert len(set(expected)) > 2


def test_any_table_may_be_the_reward(world, tokenizer):
    """Oracle: row and column by a search through the world's lists."""
    table = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    samples = everything(world, tokenizer)
    prompts, completions = world.prompts.tolist(), world.completions.tolist()
    expected = [table[prompts.index(ids[:2]), completions.index(ids[2:])] for ids in samples.sequences.input_ids]
    assert reward_of_samples(world, table)(samples).tolist() == torch.stack(expected).tolist()


def test_what_is_drawn_follows_the_table(world, tokenizer, model):
    """Oracle: the exact probabilities; each share within five standard errors. Scores of samples are the table's."""
    with torch.no_grad():
        logps = completion_logps(model, world)
    texts = prompt_texts(world)
    samples = sample(model, tokenizer, texts * (N // 4), max_new_tokens=2, seed=0, batch_size=N, every_token=True)
    assert not any(samples.finished)
    places = [world.completions.tolist().index(ids[2:]) for ids in samples.sequences.input_ids]
    rows, columns = torch.arange(4).repeat(N // 4), torch.tensor(places)
    counts = torch.zeros(4, 9).index_put((rows, columns), torch.ones(N), accumulate=True)
    expected = logps.exp() * (N / 4)
    assert ((counts - expected).abs() < 5 * (expected * (1 - logps.exp())).sqrt()).all()
    assert expected.max() > 10 * expected.min()
    first = samples.select(range(100))
    torch.testing.assert_close(score(model, first.sequences), logps[rows[:100], columns[:100]], rtol=0, atol=1e-5)
