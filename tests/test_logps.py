"""Log-probabilities against a loop that needs no shift: the model run on each prefix, a token at a time."""

import math

import pytest
import torch
from torch import Tensor

from dapedu.logps import mean_logps, sequence_logps, token_logps

torch.set_num_threads(1)

VOCABULARY, PADDING = 7, 6
PROMPTS = [[0, 1, 2], [3], [4, 4]]
COMPLETIONS = [[3, 2], [5, 0, 1, 1], [2]]
LENGTHS = [2, 4, 1]


@pytest.fixture(scope="module")
def model():
    """A random GPT-2 in float64 without dropout, its weights far from 0, so that every token matters."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=12,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    return transformers.GPT2LMHeadModel(config).double().eval()


def padded(side: str, padding: int = PADDING) -> dict[str, Tensor]:
    """Prompts and completions in one batch, with the masks that say what is what."""
    rows = [prompt + completion for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    width = max(map(len, rows)) + 1  # one column of padding even in the longest row
    input_ids = torch.full((len(rows), width), padding)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.long)
    completion_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        input_ids[i, start : start + len(row)] = torch.tensor(row)
        attention_mask[i, start : start + len(row)] = 1
        completion_mask[i, start + len(PROMPTS[i]) : start + len(row)] = True
    return {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}


def run(model, side: str, padding: int = PADDING) -> dict[str, Tensor]:
    """The three arguments of `token_logps`; positions count real tokens, so both sides see one text."""
    batch = padded(side, padding)
    attention_mask = batch.pop("attention_mask")
    positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=attention_mask, position_ids=positions).logits
    return batch | {"logits": logits}


def slow_token_logps(model, prompt: list[int], completion: list[int]) -> list[float]:
    """Run the model on everything before a token; the last row's softmax, written out, has its probability."""
    values = []
    for t, token in enumerate(completion):
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([prompt + completion[:t]])).logits[0, -1].tolist()
        values.append(scores[token] - math.log(sum(map(math.exp, scores))))
    return values


def random_batch(**options) -> dict[str, Tensor]:
    """Logits from nowhere: two rows of six tokens, left-padded by one, the completion is positions 3 to 5."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0]], dtype=torch.bool)
    return {
        "logits": torch.randn(2, 6, VOCABULARY, generator=generator, dtype=torch.float64),
        "input_ids": torch.randint(VOCABULARY, (2, 6), generator=generator),
        "completion_mask": mask,
    } | options


# ---- values ----


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_of_a_real_model(model, side):
    """Oracle: `slow_token_logps`, no batch, no padding, no shift. Outside the completion: exactly zero."""
    batch = run(model, side)
    actual = token_logps(**batch)
    expected = torch.zeros_like(actual)
    for i, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        # The first completion token is at column `first`; its log-probability stands one to the left.
        first = batch["completion_mask"][i].int().argmax().item()
        values = slow_token_logps(model, prompt, completion)
        expected[i, first - 1 : first - 1 + len(values)] = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    assert (actual != 0).sum().item() == sum(LENGTHS)


@pytest.mark.parametrize("side", ["left", "right"])
def test_sums_and_means_of_a_real_model(model, side):
    """Oracle: the slow loop's values added up, and divided by lengths counted by hand."""
    batch = run(model, side)
    sums = torch.tensor(
        [
            sum(slow_token_logps(model, prompt, completion))
            for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(sequence_logps(**batch), sums, rtol=0, atol=1e-10)
    torch.testing.assert_close(mean_logps(**batch), sums / torch.tensor(LENGTHS), rtol=0, atol=1e-10)


def test_all_completions_together_have_probability_one(model):
    """Oracle: 49 completions of two tokens after one prompt exhaust the possibilities."""
    pairs = torch.cartesian_prod(torch.arange(VOCABULARY), torch.arange(VOCABULARY))
    input_ids = torch.cat([torch.tensor([[1, 5]]).expand(len(pairs), 2), pairs], dim=1)
    mask = torch.tensor([0, 0, 1, 1]).expand(len(pairs), 4)
    with torch.no_grad():
        logits = model(input_ids=input_ids).logits
    logps = sequence_logps(logits=logits, input_ids=input_ids, completion_mask=mask)
    assert logps.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert logps.exp().max() < 0.9  # no completion has it all, the sum is not trivial


def test_a_uniform_model_by_hand():
    """Oracle: every token costs log 7; three and two tokens."""
    batch = random_batch(logits=torch.zeros(2, 6, VOCABULARY, dtype=torch.float64))
    expected = torch.tensor([3, 2], dtype=torch.float64) * -math.log(7)
    torch.testing.assert_close(sequence_logps(**batch), expected)
    torch.testing.assert_close(mean_logps(**batch), torch.full((2,), -math.log(7), dtype=torch.float64))


def test_a_constant_added_to_the_logits_changes_nothing():
    """Oracle: a softmax does not see it; raw logits in place of log-probabilities would."""
    batch = random_batch()
    shift = torch.linspace(-50, 50, 12, dtype=torch.float64).reshape(2, 6, 1)
    shifted = token_logps(**batch | {"logits": batch["logits"] + shift})
    torch.testing.assert_close(shifted, token_logps(**batch), rtol=0, atol=1e-12)


# ---- the seam: which row of logits and which token each entry depends on ----


def moved_entries(before: Tensor, after: Tensor) -> list[tuple[int, int]]:
    return [tuple(place) for place in (before != after).nonzero().tolist()]


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("t", range(6))
def test_each_row_of_logits_scores_the_next_token(row, t):
    """Oracle: entry t moves with row t alone, and only where token t + 1 is in the completion.

    At the seam: the prompt's last row (2) scores the completion's first token (3), the row before it scores
    nothing, and neither does the completion's last row.
    """
    batch = random_batch()
    before = token_logps(**batch)
    batch["logits"][row, t, 0] += 1
    scored = t + 1 < 6 and batch["completion_mask"][row, t + 1].item()
    assert moved_entries(before, token_logps(**batch)) == ([(row, t)] if scored else [])


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("t", range(6))
def test_each_completion_token_has_its_own_entry(row, t):
    """Oracle: with the logits held fixed, token t moves entry t − 1, and only in the completion."""
    batch = random_batch()
    before = token_logps(**batch)
    batch["input_ids"][row, t] = (batch["input_ids"][row, t] + 1) % VOCABULARY
    scored = batch["completion_mask"][row, t].item()
    assert moved_entries(before, token_logps(**batch)) == ([(row, t - 1)] if scored else [])


def test_two_turns_are_scored_and_what_is_between_is_not():
    """Oracle: a mask with a hole (a tool's answer, a second prompt), entry by entry."""
    mask = torch.tensor([[0, 1, 0, 0, 1, 1], [0, 0, 1, 0, 1, 0]])
    scored = token_logps(**random_batch(completion_mask=mask)) != 0
    assert scored.int().tolist() == mask[:, 1:].tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padding_id_is_irrelevant(model, side):
    """Oracle: the same batch padded with another token, and with ids no vocabulary has."""
    expected = token_logps(**run(model, side))
    torch.testing.assert_close(token_logps(**run(model, side, padding=0)), expected, rtol=0, atol=1e-12)
    batch = run(model, side)
    for outside in (-100, -1, VOCABULARY, 10**6):
        ids = padded(side, padding=outside)["input_ids"]
        torch.testing.assert_close(token_logps(**batch | {"input_ids": ids}), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_a_mask_of_ones_and_zeros_is_a_mask(dtype):
    """Oracle: the same mask as booleans (transformers and TRL give whole numbers)."""
    batch = random_batch()
    as_numbers = batch | {"completion_mask": batch["completion_mask"].to(dtype)}
    for function in (token_logps, sequence_logps, mean_logps):
        torch.testing.assert_close(function(**as_numbers), function(**batch), rtol=0, atol=0)


# ---- precision and gradients ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    """Oracle: the same rounded logits in float64. 2,000 tokens added up in bfloat16 are off by whole nats."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2001, VOCABULARY, generator=generator).to(dtype)
    batch = {
        "input_ids": torch.randint(VOCABULARY, (1, 2001), generator=generator),
        "completion_mask": torch.arange(2001)[None] > 0,
    }
    actual = sequence_logps(logits=logits, **batch)
    exact = sequence_logps(logits=logits.double(), **batch)
    assert actual.dtype == torch.float32
    assert exact.dtype == torch.float64
    torch.testing.assert_close(actual.double(), exact, rtol=1e-6, atol=0)


def test_the_gradient_is_one_hot_minus_softmax_where_scored_and_zero_elsewhere():
    """Oracle: d log softmax(z)_k / dz = e_k − softmax(z), written out; exactly 0 at unscored positions."""
    batch = random_batch()
    logits = batch["logits"].requires_grad_()
    sequence_logps(**batch).sum().backward()
    expected = torch.zeros_like(logits)
    for row, t in [(0, 2), (0, 3), (0, 4), (1, 2), (1, 3)]:
        weights = logits[row, t].detach().exp()
        expected[row, t] = -weights / weights.sum()
        expected[row, t, batch["input_ids"][row, t + 1]] += 1
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-12)
    assert ((logits.grad != 0).any(dim=2) == (expected != 0).any(dim=2)).all()


def test_token_gradient_against_finite_differences():
    """Oracle: `torch.autograd.gradcheck`."""
    batch = random_batch()
    logits = batch.pop("logits").requires_grad_()
    assert torch.autograd.gradcheck(lambda scores: token_logps(logits=scores, **batch), logits)


def test_arguments_stay_as_they_were():
    """Oracle: a copy made before (the −100 for what is not scored must not reach the caller's ids)."""
    batch = random_batch()
    before = {name: tensor.clone() for name, tensor in batch.items()}
    mean_logps(**batch)
    for name, tensor in batch.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


# ---- what a wrong call says ----

each_function = pytest.mark.parametrize("function", [token_logps, sequence_logps, mean_logps])


@each_function
def test_a_completion_cannot_start_at_position_0(function):
    """Oracle: nothing predicts the first token; dropping it silently would be worse."""
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
    with pytest.raises(ValueError, match="completion_mask is true at position 0") as error:
        function(**random_batch(completion_mask=mask))
    assert "begin-of-sequence token" in str(error.value)


@each_function
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"logits": torch.zeros(6, VOCABULARY)},
            "token_logps: logits has shape (6, 7), expected (batch, seq, vocabulary)",
        ),
        (
            {"logits": torch.zeros(2, 5, VOCABULARY)},
            "token_logps: input_ids has shape (2, 6), expected (2, 5)",
        ),
        (
            {"input_ids": torch.zeros(2, 5, dtype=torch.long)},
            "token_logps: input_ids has shape (2, 5), expected (2, 6)",
        ),
        (
            {"completion_mask": torch.ones(1, 6, dtype=torch.bool)},
            "token_logps: completion_mask has shape (1, 6), expected (2, 6)",
        ),
        (
            {"completion_mask": torch.zeros(6, dtype=torch.bool)},
            "token_logps: completion_mask has shape (6,), expected (2, 6)",
        ),
    ],
    ids=["no batch axis", "shifted logits", "short ids", "mask that would broadcast", "mask of one row"],
)
def test_shapes_that_do_not_fit_are_named(function, change, message):
    """Oracle: argument and both shapes stand in the message."""
    with pytest.raises(ValueError, match="shape") as error:
        function(**random_batch(**change))
    assert str(error.value) == message


def test_an_empty_completion_sums_to_zero_but_has_no_mean():
    """Oracle: the empty sum; 0/0 would be NaN and train on."""
    mask = random_batch()["completion_mask"]
    mask[1] = False
    batch = random_batch(completion_mask=mask)
    assert sequence_logps(**batch)[1].item() == 0
    with pytest.raises(ValueError, match="empty") as error:
        mean_logps(**batch)
    assert str(error.value) == "mean_logps: the completions of rows [1] are empty, so they have no mean"


@each_function
def test_arguments_have_names(function):
    """Oracle: ids and mask must not be swappable."""
    with pytest.raises(TypeError, match="positional"):
        function(*random_batch().values())


@pytest.mark.parametrize("bad", [-100, 5])
def test_ids_outside_the_vocabulary_are_refused_on_the_completion_and_ignored_elsewhere(bad):
    """Oracle: −100, which labels use to hide a token, would score as certain; padding may hold anything."""
    logits = torch.zeros(1, 4, 5)
    mask = torch.tensor([[False, True, True, False]])
    with pytest.raises(ValueError, match="input_ids on the completion go beyond 0 … 4"):
        token_logps(logits=logits, input_ids=torch.tensor([[0, 1, bad, 2]]), completion_mask=mask)
    padded = token_logps(logits=logits, input_ids=torch.tensor([[bad, 1, 2, bad]]), completion_mask=mask)
    torch.testing.assert_close(padded, torch.tensor([[-math.log(5), -math.log(5), 0.0]]))
