"""Every loss against hand values, a float64 re-derivation, finite differences and TRL 1.16.

The table `CASES` says once, a loss at a time, how to draw its arguments and what a plain Python derivation of
the paper's formula and of its gradient gives for one example; the tests below go through the table.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dapedu.logps import mean_logps, sequence_logps
from dapedu.losses import (
    bradley_terry_loss,
    click_loss,
    dpo_loss,
    ipo_loss,
    rrhf_loss,
    slic_hf_loss,
    spin_loss,
)

torch.set_num_threads(1)

Row = dict[str, float | list[float]]  # one example: what a row of each tensor holds


class Case(NamedTuple):
    loss: Callable[..., Tensor]
    floats: tuple[str, ...]  # tensor arguments that are differentiated
    strengths: dict[str, float]
    value: Callable[..., float]  # plain Python, one example
    slopes: Callable[..., Row]  # plain Python, one example: d loss / d argument


# ---- the papers' formulas once more, one example at a time, by another route than the package's ----


def bradley_terry_value(chosen_rewards, rejected_rewards):
    return -math.log(math.exp(chosen_rewards) / (math.exp(chosen_rewards) + math.exp(rejected_rewards)))


def bradley_terry_slopes(chosen_rewards, rejected_rewards):
    lost = 1 / (1 + math.exp(chosen_rewards - rejected_rewards))  # probability of the other outcome
    return {"chosen_rewards": -lost, "rejected_rewards": lost}


def slic_hf_value(policy_chosen_logps, policy_rejected_logps, policy_target_logps, delta, sft_weight):
    gap = policy_chosen_logps - policy_rejected_logps
    return (delta - gap if gap < delta else 0) - sft_weight * policy_target_logps


def slic_hf_slopes(policy_chosen_logps, policy_rejected_logps, policy_target_logps, delta, sft_weight):
    active = float(policy_chosen_logps - policy_rejected_logps < delta)
    return {
        "policy_chosen_logps": -active,
        "policy_rejected_logps": active,
        "policy_target_logps": -sft_weight,
    }


def dpo_value(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    chosen_ratio = math.exp(policy_chosen_logps) / math.exp(reference_chosen_logps)
    rejected_ratio = math.exp(policy_rejected_logps) / math.exp(reference_rejected_logps)
    return math.log(1 + (rejected_ratio / chosen_ratio) ** beta)


def dpo_slopes(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    policy_gap = policy_chosen_logps - policy_rejected_logps
    reference_gap = reference_chosen_logps - reference_rejected_logps
    slope = -beta / (1 + math.exp(beta * (policy_gap - reference_gap)))  # −β σ(−βh)
    return four_slopes(slope)


def ipo_value(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, tau):
    policy_gap = policy_chosen_logps - policy_rejected_logps
    reference_gap = reference_chosen_logps - reference_rejected_logps
    return ((2 * tau * (policy_gap - reference_gap) - 1) / (2 * tau)) ** 2


def ipo_slopes(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, tau):
    policy_gap = policy_chosen_logps - policy_rejected_logps
    reference_gap = reference_chosen_logps - reference_rejected_logps
    return four_slopes(2 * (policy_gap - reference_gap) - 1 / tau)


def four_slopes(slope):
    """dL/dh handed on to the four log-probabilities in h."""
    return {
        "policy_chosen_logps": slope,
        "policy_rejected_logps": -slope,
        "reference_chosen_logps": -slope,
        "reference_rejected_logps": slope,
    }


def rrhf_value(candidate_logps, candidate_lengths, rewards, sft_weight):
    means = [logp / length for logp, length in zip(candidate_logps, candidate_lengths, strict=True)]
    rank = 0.0
    for i in range(len(means)):
        for j in range(len(means)):
            if rewards[j] > rewards[i] and means[i] > means[j]:
                rank += means[i] - means[j]
    return rank - sft_weight * candidate_logps[rewards.index(max(rewards))]


def rrhf_slopes(candidate_logps, candidate_lengths, rewards, sft_weight):
    means = [logp / length for logp, length in zip(candidate_logps, candidate_lengths, strict=True)]
    slopes = [0.0] * len(means)
    for i in range(len(means)):
        for j in range(len(means)):
            if rewards[j] > rewards[i] and means[i] > means[j]:
                slopes[i] += 1 / candidate_lengths[i]
                slopes[j] -= 1 / candidate_lengths[j]
    slopes[rewards.index(max(rewards))] -= sft_weight
    return {"candidate_logps": slopes}


def click_value(policy_chosen_logps, policy_rejected_logps, target_mean_logps, delta, contrast_weight):
    gap = policy_chosen_logps - policy_rejected_logps
    return contrast_weight * (delta - gap if gap < delta else 0) - target_mean_logps


def click_slopes(policy_chosen_logps, policy_rejected_logps, target_mean_logps, delta, contrast_weight):
    pull = contrast_weight * (policy_chosen_logps - policy_rejected_logps < delta)
    return {"policy_chosen_logps": -pull, "policy_rejected_logps": pull, "target_mean_logps": -1.0}


REWARDS = ("chosen_rewards", "rejected_rewards")
FOUR = (
    "policy_chosen_logps",
    "policy_rejected_logps",
    "reference_chosen_logps",
    "reference_rejected_logps",
)
SLIC = ("policy_chosen_logps", "policy_rejected_logps", "policy_target_logps")
CLICK = ("policy_chosen_logps", "policy_rejected_logps", "target_mean_logps")
RRHF = ("candidate_logps", "candidate_lengths", "rewards")

CASES = {
    "bradley_terry": Case(bradley_terry_loss, REWARDS, {}, bradley_terry_value, bradley_terry_slopes),
    "slic_hf": Case(slic_hf_loss, SLIC, {"delta": 1.5, "sft_weight": 0.3}, slic_hf_value, slic_hf_slopes),
    "dpo": Case(dpo_loss, FOUR, {"beta": 0.4}, dpo_value, dpo_slopes),
    "ipo": Case(ipo_loss, FOUR, {"tau": 0.3}, ipo_value, ipo_slopes),
    "rrhf": Case(rrhf_loss, ("candidate_logps",), {"sft_weight": 0.7}, rrhf_value, rrhf_slopes),
    "click": Case(click_loss, CLICK, {"delta": 1.5, "contrast_weight": 0.6}, click_value, click_slopes),
    "spin": Case(spin_loss, FOUR, {"beta": 0.4}, dpo_value, dpo_slopes),
}
each_loss = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def draw(case: Case, n: int = 64, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A batch in which about half of the hinges are active and some rewards tie."""
    generator = torch.Generator().manual_seed(seed)
    if case.loss is rrhf_loss:
        return {
            "candidate_logps": 6 * torch.randn(n, 4, generator=generator, dtype=dtype) - 20,
            "candidate_lengths": torch.randint(1, 9, (n, 4), generator=generator),
            "rewards": torch.randint(0, 4, (n, 4), generator=generator).to(dtype),
        }
    return {name: 3 * torch.randn(n, generator=generator, dtype=dtype) - 4 for name in case.floats}


def rows(tensors: dict[str, Tensor]) -> list[Row]:
    n = len(next(iter(tensors.values())))
    return [{name: tensor[i].tolist() for name, tensor in tensors.items()} for i in range(n)]


def margin_arguments(h: Tensor) -> dict[str, Tensor]:
    """The four log-probabilities of pairs whose log-ratio margin is h, all four different from 0."""
    return {
        "policy_chosen_logps": h / 2 - 3,
        "policy_rejected_logps": -5 - h / 4,
        "reference_chosen_logps": -2 - h / 8,
        "reference_rejected_logps": h / 8 - 4,
    }


def swap(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """The pairs with winner and loser exchanged."""
    other = {"chosen": "rejected", "rejected": "chosen"}
    flipped = {}
    for name, tensor in arguments.items():
        model, role, unit = name.split("_")
        flipped[f"{model}_{other[role]}_{unit}"] = tensor
    return flipped


# ---- values ----

PAIR = {"policy_chosen_logps": -4.0, "policy_rejected_logps": -3.0}
PAIR_WITH_REFERENCE = PAIR | {
    "reference_chosen_logps": -7.0,
    "reference_rejected_logps": -4.0,
}  # h = 3 − 1 = 2
CANDIDATES = {
    "candidate_logps": [-6.0, -2.0, -9.0],
    "candidate_lengths": [3, 2, 3],
    "rewards": [1.0, 0.0, 2.0],
}
HAND = {
    # r_w − r_l = log 3, σ = 3/4: loss log(4/3)
    "bradley_terry": (
        bradley_terry_loss,
        {"chosen_rewards": math.log(6), "rejected_rewards": math.log(2)},
        0.28768207245178,
    ),
    # max(0, 1.5 + 4 − 3) − .1 · (−8) = 2.5 + .8
    "slic_hf": (slic_hf_loss, PAIR | {"policy_target_logps": -8.0, "delta": 1.5, "sft_weight": 0.1}, 3.3),
    # The roles exchanged: max(0, 1.5 + 3 − 4) + .8
    "slic_hf, right order": (
        slic_hf_loss,
        {"policy_chosen_logps": -3.0, "policy_rejected_logps": -4.0, "policy_target_logps": -8.0}
        | {"delta": 1.5, "sft_weight": 0.1},
        1.3,
    ),
    # −log σ(.5 · 2) = log(1 + e⁻¹)
    "dpo": (dpo_loss, PAIR_WITH_REFERENCE | {"beta": 0.5}, 0.31326168751822),
    # target 1/(2 · .1) = 5: (2 − 5)²
    "ipo": (ipo_loss, PAIR_WITH_REFERENCE | {"tau": 0.1}, 9.0),
    # means −2, −1, −3; r: 1, 0, 2. Worse above better: (b over a) −1 + 2 = 1, (b over c) −1 + 3 = 2,
    # (a over c) −2 + 3 = 1; the best is c: + .5 · 9
    "rrhf": (rrhf_loss, CANDIDATES | {"sft_weight": 0.5}, 8.5),
    # 2.5 + .2 · max(0, 15 − 3 + 4)
    "click": (click_loss, PAIR | {"target_mean_logps": -2.5, "delta": 15.0, "contrast_weight": 0.2}, 5.7),
    # −log σ(.5 · 2) = log(1 + e⁻¹)
    "spin": (spin_loss, PAIR_WITH_REFERENCE | {"beta": 0.5}, 0.31326168751822),
}


@pytest.mark.parametrize(("loss", "arguments", "expected"), HAND.values(), ids=HAND)
def test_value_worked_out_by_hand(loss, arguments, expected):
    """Oracle: the comments of `HAND`."""
    strengths = {"beta", "tau", "delta", "sft_weight", "contrast_weight"}
    batch = {
        name: value if name in strengths else torch.tensor([value], dtype=torch.float64)
        for name, value in arguments.items()
    }
    torch.testing.assert_close(loss(**batch), torch.tensor([expected], dtype=torch.float64), rtol=0, atol=1e-12)


@each_loss
@pytest.mark.parametrize("seed", [0, 1])
def test_value_is_the_papers_formula(case, seed):
    """Oracle: the formula in plain Python, float64, an example at a time."""
    batch = draw(case, seed=seed)
    expected = [case.value(**row, **case.strengths) for row in rows(batch)]
    actual = case.loss(**batch, **case.strengths)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10)


@each_loss
def test_gradient_is_the_papers(case):
    """Oracle: the derivative by hand, in plain Python, an example at a time."""
    batch = draw(case)
    for name in case.floats:
        batch[name].requires_grad_()
    case.loss(**batch, **case.strengths).sum().backward()
    expected = [case.slopes(**row, **case.strengths) for row in rows(batch)]
    for name in case.floats:
        by_hand = torch.tensor([row[name] for row in expected], dtype=torch.float64)
        torch.testing.assert_close(batch[name].grad, by_hand, rtol=1e-10, atol=1e-10)


@each_loss
def test_gradient_is_that_of_finite_differences(case):
    """Oracle: central differences (`torch.autograd.gradcheck`); the draw has no hinge near its kink."""
    batch = draw(case, n=6)
    fixed = {name: tensor for name, tensor in batch.items() if name not in case.floats}

    def of_floats(*tensors):
        return case.loss(**dict(zip(case.floats, tensors, strict=True)), **fixed, **case.strengths)

    assert torch.autograd.gradcheck(of_floats, [batch[name].requires_grad_() for name in case.floats])


@each_loss
def test_each_example_has_its_own_loss(case):
    """Oracle: the batch taken apart: nothing is averaged, and no example sees another."""
    batch = draw(case, n=7)
    together = case.loss(**batch, **case.strengths)
    assert together.shape == (7,)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    permuted = case.loss(**{name: tensor[order] for name, tensor in batch.items()}, **case.strengths)
    torch.testing.assert_close(permuted, together[order], rtol=0, atol=0)
    for i in range(7):
        alone = case.loss(**{name: tensor[i : i + 1] for name, tensor in batch.items()}, **case.strengths)
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("case", "name"),
    [pytest.param(case, name, id=f"{key}-{name}") for key, case in CASES.items() for name in case.strengths],
)
def test_a_strength_may_be_a_tensor(case, name):
    """Oracle: a float an example. `train_bandit` relies on this to train every strength at once."""
    batch = draw(case, n=5)
    values = torch.tensor([0.1, 0.5, 1.0, 2.0, 5.0], dtype=torch.float64)
    each = [
        case.loss(**{key: tensor[i : i + 1] for key, tensor in batch.items()}, **{**case.strengths, name: value})
        for i, value in enumerate(values.tolist())
    ]
    together = case.loss(**batch, **{**case.strengths, name: values})
    torch.testing.assert_close(together, torch.cat(each), rtol=1e-13, atol=0)
    grid = case.loss(
        **{key: tensor.expand(5, *tensor.shape) for key, tensor in batch.items()}
        if case.loss is not rrhf_loss
        else batch,
        **{**case.strengths, name: values[:, None]},
    )
    torch.testing.assert_close(grid.diagonal(), together, rtol=1e-13, atol=0)


@each_loss
def test_arguments_stay_as_they_were(case):
    """Oracle: a copy made before."""
    batch = draw(case)
    before = {name: tensor.clone() for name, tensor in batch.items()}
    case.loss(**batch, **case.strengths)
    for name, tensor in batch.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_log_probabilities_stay_finite(case, dtype):
    """Oracle: linear tails. −log(sigmoid(x)) written naively is ∞ here and its gradient NaN."""
    names = case.floats
    corners = torch.cartesian_prod(*[torch.tensor([-1e4, 1e4], dtype=dtype)] * max(len(names), 2))
    if case.loss is rrhf_loss:
        batch = {"candidate_logps": corners.clone().requires_grad_(), "candidate_lengths": torch.ones(4, 2)}
        batch["rewards"] = torch.tensor([0.0, 1.0]).expand(4, 2)
    else:
        batch = {name: corners[:, i].clone().requires_grad_() for i, name in enumerate(names)}
    losses = case.loss(**batch, **case.strengths)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert losses.dtype == dtype
    for name in names:
        assert batch[name].grad.isfinite().all(), name


# ---- what each loss is known for ----


@pytest.mark.parametrize("loss", [dpo_loss, spin_loss])
@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_a_logistic_loss_starts_at_log_2_with_slope_minus_half_beta(loss, beta):
    """Oracle: σ(0) = 1/2."""
    h = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    value = loss(**margin_arguments(h), beta=beta)
    (slope,) = torch.autograd.grad(value, h)
    assert value.item() == pytest.approx(math.log(2), abs=1e-14)
    assert slope.item() == pytest.approx(-beta / 2, abs=1e-14)


@pytest.mark.parametrize("loss", [dpo_loss, spin_loss])
def test_a_logistic_loss_is_linear_far_out(loss):
    """Oracle: −log σ(βh) → −βh for h → −∞, and e^{−βh} for h → ∞."""
    h = torch.tensor([-4e4, 500.0], dtype=torch.float64)
    values = loss(**margin_arguments(h), beta=0.1)
    torch.testing.assert_close(values, torch.tensor([4e3, math.exp(-50)], dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [dpo_loss, spin_loss])
def test_swapping_a_pair_gives_the_complementary_probability(loss):
    """Oracle: P(y_w ≻ y_l) + P(y_l ≻ y_w) = 1 under Bradley–Terry."""
    batch = draw(CASES["dpo"])
    total = torch.exp(-loss(**batch, beta=0.4)) + torch.exp(-loss(**swap(batch), beta=0.4))
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-14)


def test_dpo_is_bradley_terry_of_the_implicit_rewards():
    """Oracle: arXiv:2305.18290, Eq. 7 is Eq. 2 with r = β log π/π_ref."""
    batch = draw(CASES["dpo"])
    rewards = {
        f"{role}_rewards": 0.4 * (batch[f"policy_{role}_logps"] - batch[f"reference_{role}_logps"])
        for role in ("chosen", "rejected")
    }
    torch.testing.assert_close(dpo_loss(**batch, beta=0.4), bradley_terry_loss(**rewards))


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_ipo_is_zero_exactly_at_its_target(tau):
    """Oracle: h = 1/(2τ); one nat beside it on either side the loss is 1, so it pulls back from both."""
    target = 1 / (2 * tau)
    h = torch.tensor([target, target + 1, target - 1], dtype=torch.float64, requires_grad=True)
    values = ipo_loss(**margin_arguments(h), tau=tau)
    (slopes,) = torch.autograd.grad(values.sum(), h)
    torch.testing.assert_close(values, torch.tensor([0.0, 1, 1], dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(slopes, torch.tensor([0.0, 2, -2], dtype=torch.float64), rtol=0, atol=1e-12)


def test_swapping_a_pair_flips_ipos_margin():
    """Oracle: (h − t)² − (−h − t)² = −4ht."""
    batch = draw(CASES["ipo"])
    policy_gap = batch["policy_chosen_logps"] - batch["policy_rejected_logps"]
    h = policy_gap - batch["reference_chosen_logps"] + batch["reference_rejected_logps"]
    difference = ipo_loss(**batch, tau=0.3) - ipo_loss(**swap(batch), tau=0.3)
    torch.testing.assert_close(difference, -2 * h / 0.3)


@pytest.mark.parametrize(
    ("gap", "expected"), [(0.999, 1.0), (1.001, 0.0), (50.0, 0.0)], ids=["short of it", "past it", "far past"]
)
@pytest.mark.parametrize("name", ["slic_hf", "click"])
def test_a_satisfied_hinge_pulls_no_more(name, gap, expected):
    """Oracle: d max(0, δ − gap) / d gap is −1 before the margin δ = 1 and 0 after it."""
    case = CASES[name]
    chosen = torch.tensor([gap - 7], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-7.0], dtype=torch.float64, requires_grad=True)
    target = torch.zeros(1, dtype=torch.float64)
    weight = {name: 1.0 for name in case.strengths if name != "delta"}
    loss = case.loss(**dict(zip(case.floats, (chosen, rejected, target), strict=True)), delta=1.0, **weight)
    slopes = torch.autograd.grad(loss, (chosen, rejected))
    assert [slope.item() for slope in slopes] == [-expected, expected]


def test_rrhf_candidates_in_the_right_order_pull_no_more():
    """Oracle: no violated pair; only the likelihood of the best candidate has a gradient."""
    logps = torch.tensor([[-1.0, -4.0, -9.0]], dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([[1, 2, 3]])  # means −1, −2, −3
    loss = rrhf_loss(
        candidate_logps=logps, candidate_lengths=lengths, rewards=torch.tensor([[3, 2, 1]]), sft_weight=1.0
    )
    (slopes,) = torch.autograd.grad(loss, logps)
    assert loss.tolist() == [1.0]
    assert slopes.tolist() == [[-1.0, 0.0, 0.0]]


def test_rrhf_ranks_by_the_mean_not_by_the_sum():
    """Oracle: by sums −8 < −2 the pair is in order, by means −1 > −2 it is violated by one nat."""
    loss = rrhf_loss(
        candidate_logps=torch.tensor([[-8.0, -2.0]]),
        candidate_lengths=torch.tensor([[8, 1]]),
        rewards=torch.tensor([[0.0, 1.0]]),
        sft_weight=0.0,
    )
    assert loss.tolist() == [1.0]


def test_rrhf_ties_contribute_nothing_and_the_first_best_is_imitated():
    """Oracle: Σ is over r_i < r_j strictly; equal rewards leave −λ S of the first of the best."""
    logps = torch.tensor([[-1.0, -2.0, -5.0], [-9.0, -3.0, -4.0]], requires_grad=True)
    rewards = torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 2.0]])
    loss = rrhf_loss(candidate_logps=logps, candidate_lengths=torch.ones(2, 3), rewards=rewards, sft_weight=2.0)
    assert loss.tolist() == [2.0, 6.0]
    (slopes,) = torch.autograd.grad(loss.sum(), logps)
    assert slopes.tolist() == [[-2.0, 0.0, 0.0], [0.0, -2.0, 0.0]]


def test_rrhf_takes_whole_numbers_for_lengths_and_rewards():
    """Oracle: the same numbers as floats."""
    batch = draw(CASES["rrhf"])
    whole = batch | {"rewards": batch["rewards"].long()}
    floats = batch | {"candidate_lengths": batch["candidate_lengths"].double()}
    torch.testing.assert_close(rrhf_loss(**whole, sft_weight=0.7), rrhf_loss(**floats, sft_weight=0.7), rtol=0, atol=0)


# ---- what a wrong call says ----

TENSORS = [(case, name) for case in CASES.values() for name in draw(case, n=1)]


def argument_id(value):
    return value.loss.__name__ if isinstance(value, Case) else str(value)


each_tensor = pytest.mark.parametrize(("case", "name"), TENSORS, ids=argument_id)


def message_of(error: pytest.ExceptionInfo) -> str:
    return str(error.value)


@pytest.mark.parametrize(
    ("case", "name"),
    [(case, name) for case, name in TENSORS if name != next(iter(draw(case, n=1)))],
    ids=argument_id,
)
def test_a_shape_that_differs_is_named(case, name):
    """Oracle: function, argument and both shapes stand in the message, and nothing else."""
    batch = draw(case, n=4)
    shape = tuple(batch[name].shape)
    batch[name] = batch[name][:3]
    with pytest.raises(ValueError, match="shape") as error:
        case.loss(**batch, **case.strengths)
    other = (3, *shape[1:])
    assert message_of(error) == f"{case.loss.__name__}: {name} has shape {other}, expected {shape}"


@pytest.mark.parametrize("name", FOUR[1:])
def test_shapes_that_would_broadcast_are_refused(name):
    """Oracle: (4,) against (4, 1) would give 16 losses for four pairs."""
    batch = draw(CASES["dpo"], n=4)
    batch[name] = batch[name][:, None]
    with pytest.raises(ValueError, match=rf"^dpo_loss: {name} has shape \(4, 1\), expected \(4,\)$"):
        dpo_loss(**batch, beta=0.1)


def test_rrhf_wants_prompts_by_candidates():
    """Oracle: the message names the shape it got and the one it wants."""
    batch = {name: tensor[0] for name, tensor in draw(CASES["rrhf"]).items()}
    with pytest.raises(ValueError, match="candidate_logps") as error:
        rrhf_loss(**batch, sft_weight=1.0)
    assert message_of(error) == "rrhf_loss: candidate_logps has shape (4,), expected (prompts, k)"


@each_tensor
def test_a_list_is_refused(case, name):
    """Oracle: function, argument and type stand in the message."""
    batch = draw(case, n=4)
    batch[name] = batch[name].tolist()
    with pytest.raises(TypeError) as error:
        case.loss(**batch, **case.strengths)
    assert message_of(error) == f"{case.loss.__name__}: {name} is a list, expected a torch.Tensor"


@pytest.mark.parametrize(
    ("case", "name"), [(case, name) for case, name in TENSORS if name in case.floats], ids=argument_id
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_whole_numbers_for_log_probabilities_are_refused(case, name, dtype):
    """Oracle: function, argument and dtype stand in the message (token ids passed for log-probabilities)."""
    batch = draw(case, n=4)
    batch[name] = batch[name].to(dtype)
    with pytest.raises(TypeError) as error:
        case.loss(**batch, **case.strengths)
    assert message_of(error) == f"{case.loss.__name__}: {name} has dtype {dtype}, expected floats"


STRENGTHS = [(case, name) for case in CASES.values() for name in case.strengths]
POSITIVE = [(case, name) for case, name in STRENGTHS if name in {"beta", "tau"}]
NOT_NEGATIVE = [pair for pair in STRENGTHS if pair not in POSITIVE]


@pytest.mark.parametrize(("case", "name"), POSITIVE, ids=argument_id)
@pytest.mark.parametrize("value", [0, 0.0, -0.1, math.nan])
def test_beta_and_tau_must_be_positive(case, name, value):
    """Oracle: function, argument, value and range stand in the message."""
    with pytest.raises(ValueError, match=name) as error:
        case.loss(**draw(case), **{**case.strengths, name: value})
    assert message_of(error) == f"{case.loss.__name__}: {name} is {value}, expected > 0"


@pytest.mark.parametrize(("case", "name"), NOT_NEGATIVE, ids=argument_id)
@pytest.mark.parametrize("value", [-1, -0.1, math.nan])
def test_margins_and_weights_must_not_be_negative(case, name, value):
    """Oracle: function, argument, value and range stand in the message."""
    with pytest.raises(ValueError, match=name) as error:
        case.loss(**draw(case), **{**case.strengths, name: value})
    assert message_of(error) == f"{case.loss.__name__}: {name} is {value}, expected ≥ 0"


@pytest.mark.parametrize(("case", "name"), NOT_NEGATIVE, ids=argument_id)
def test_margins_and_weights_may_be_zero(case, name):
    """Oracle: the plain Python formula at 0."""
    batch, strengths = draw(case), {**case.strengths, name: 0.0}
    expected = [case.value(**row, **strengths) for row in rows(batch)]
    torch.testing.assert_close(case.loss(**batch, **strengths), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("case", "name"), STRENGTHS, ids=argument_id)
def test_one_bad_entry_of_a_strength_tensor_is_enough(case, name):
    """Oracle: the same rule for every entry."""
    values = torch.full((4,), 0.5)
    values[2] = -0.5
    with pytest.raises(ValueError, match=rf"^{case.loss.__name__}: {name} is tensor"):
        case.loss(**draw(case, n=4), **{**case.strengths, name: values})


@pytest.mark.parametrize("length", [0, -3])
def test_rrhf_lengths_must_be_positive(length):
    """Oracle: a division by zero or by a negative length would silently reorder the candidates."""
    batch = draw(CASES["rrhf"])
    batch["candidate_lengths"][5, 2] = length
    with pytest.raises(ValueError, match=r"^rrhf_loss: candidate_lengths is .*expected > 0$"):
        rrhf_loss(**{name: tensor[5:6] for name, tensor in batch.items()}, sft_weight=1.0)


@each_loss
def test_arguments_have_names_and_no_defaults(case):
    """Oracle: tensors of one type must not be swappable, and a hyperparameter belongs to the caller."""
    batch = draw(case)
    with pytest.raises(TypeError, match="positional"):
        case.loss(*batch.values(), **case.strengths)
    for name in [*batch, *case.strengths]:
        others = {key: value for key, value in (batch | case.strengths).items() if key != name}
        with pytest.raises(TypeError, match=f"missing 1 required keyword-only argument: '{name}'"):
            case.loss(**others)


# ---- the documented deviations: what public code computes, from these functions ----


def test_spin_is_dpo_with_the_previous_iterate_as_reference():
    """Oracle: `dpo_loss`; chosen = human, rejected = the last iterate's (arXiv:2401.01335, Eq. 4.7)."""
    batch = draw(CASES["spin"])
    torch.testing.assert_close(spin_loss(**batch, beta=0.1), dpo_loss(**batch, beta=0.1), rtol=0, atol=0)


@pytest.mark.parametrize("rank_weight", [1, 100])
def test_rrhf_as_shipped(rank_weight):
    """Oracle: (1/L)[w Σ max(0, S_i − S_j) − S_i'], in plain Python; L is the padded length, prompt included.

    RRHF's script has w = 1, the default of its code w = 100.
    """
    batch, padded_length = draw(CASES["rrhf"]), 32
    expected = []
    for row in rows(batch):
        sums, rewards = row["candidate_logps"], row["rewards"]
        pairs = [(i, j) for i in range(4) for j in range(4) if rewards[i] < rewards[j]]
        rank = sum(max(0.0, sums[i] - sums[j]) for i, j in pairs)
        expected.append((rank_weight * rank - sums[rewards.index(max(rewards))]) / padded_length)
    batch["candidate_lengths"] = torch.full_like(batch["candidate_lengths"], padded_length)
    shipped = rank_weight * rrhf_loss(**batch, sft_weight=1 / (padded_length * rank_weight))
    torch.testing.assert_close(shipped, torch.tensor(expected, dtype=torch.float64))


def click_texts(lengths: list[int]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Token log-probabilities of training texts, and a batch of pairs beside them."""
    generator = torch.Generator().manual_seed(3)
    texts = [-3 * torch.rand(length, generator=generator, dtype=torch.float64) for length in lengths]
    batch = draw(CASES["click"], n=len(lengths))
    return texts, batch | {"target_mean_logps": torch.stack([text.mean() for text in texts])}


def test_click_averages_over_texts_not_over_the_tokens_of_a_batch():
    """Oracle: the authors' cross-entropy, one mean over all tokens; equal where the lengths are equal."""
    for lengths, agree in [([5, 5, 5], True), ([1, 4, 10], False)]:
        texts, batch = click_texts(lengths)
        over_tokens = -torch.cat(texts).mean()
        over_texts = click_loss(**batch, delta=1.0, contrast_weight=0.0).mean()
        assert torch.isclose(over_tokens, over_texts).item() == agree


def test_click_as_shipped_is_a_weighted_mean():
    """Oracle: token-averaged cross-entropy + α · mean hinge, both in plain Python."""
    lengths = [1, 4, 10]
    texts, batch = click_texts(lengths)
    gaps = (batch["policy_chosen_logps"] - batch["policy_rejected_logps"]).tolist()
    hinge = sum(max(0.0, 2.0 - gap) for gap in gaps) / 3
    expected = -sum(sum(text.tolist()) for text in texts) / sum(lengths) + 0.5 * hinge
    share = torch.tensor(lengths, dtype=torch.float64) / sum(lengths)
    cross_entropy = click_loss(**batch, delta=2.0, contrast_weight=0.0)
    whole = click_loss(**batch, delta=2.0, contrast_weight=0.5)
    shipped = (share * cross_entropy).sum() + (whole - cross_entropy).mean()
    assert shipped.item() == pytest.approx(expected, abs=1e-12)


def conservative_dpo(epsilon: float, beta: float, **batch: Tensor) -> Tensor:
    """cDPO: a share ε of the labels is taken to be wrong."""
    return (1 - epsilon) * dpo_loss(**batch, beta=beta) + epsilon * dpo_loss(**swap(batch), beta=beta)


def robust_dpo(epsilon: float, beta: float, **batch: Tensor) -> Tensor:
    """Robust DPO (arXiv:2403.00409): the loss whose mean over flips is the clean one."""
    kept, flipped = dpo_loss(**batch, beta=beta), dpo_loss(**swap(batch), beta=beta)
    return ((1 - epsilon) * kept - epsilon * flipped) / (1 - 2 * epsilon)


@pytest.mark.parametrize("epsilon", [0.1, 0.3])
def test_label_smoothing_stops_at_a_finite_margin(epsilon):
    """Oracle: βh = logit(1 − ε), where the loss is the entropy of ε; larger on either side."""
    beta, optimum = 0.5, math.log((1 - epsilon) / epsilon)
    h = torch.tensor([optimum - 0.1, optimum, optimum + 0.1], dtype=torch.float64).div(beta).requires_grad_()
    values = conservative_dpo(epsilon, beta, **margin_arguments(h))
    (slopes,) = torch.autograd.grad(values.sum(), h)
    entropy = -epsilon * math.log(epsilon) - (1 - epsilon) * math.log(1 - epsilon)
    assert values[1].item() == pytest.approx(entropy, abs=1e-13)
    assert slopes[1].item() == pytest.approx(0, abs=1e-13)
    assert slopes[0] < -1e-3
    assert slopes[2] > 1e-3


def test_robust_dpo_is_unbiased_under_flips():
    """Oracle: (1 − ε) L_robust(pair) + ε L_robust(flipped pair) = L_dpo(pair)."""
    epsilon, batch = 0.2, draw(CASES["dpo"])
    as_seen = (1 - epsilon) * robust_dpo(epsilon, 0.4, **batch)
    as_flipped = epsilon * robust_dpo(epsilon, 0.4, **swap(batch))
    torch.testing.assert_close(as_seen + as_flipped, dpo_loss(**batch, beta=0.4))


def test_robust_dpo_is_unbounded_below_on_a_pair_seen_one_way():
    """Oracle: → −ε βh/(1 − 2ε) for h → ∞, while DPO and cDPO stay above 0."""
    epsilon, beta = 0.2, 0.5
    arguments = margin_arguments(torch.tensor([1e3, 1e6], dtype=torch.float64))
    values = robust_dpo(epsilon, beta, **arguments)
    torch.testing.assert_close(
        values, torch.tensor([-1e3, -1e6], dtype=torch.float64) * epsilon * beta / (1 - 2 * epsilon)
    )
    assert (dpo_loss(**arguments, beta=beta) >= 0).all()
    assert (conservative_dpo(epsilon, beta, **arguments) > 0).all()


# ---- a peer: TRL 1.16's DPOTrainer, its own code on a random GPT-2 and a tokenizer made here ----

TRL_BETA, TRL_EPSILON = 0.3, 0.1
PREFERENCES = {
    "prompt": ["a b", "c", "d d d"],
    "chosen": [" c d a", " b", " a"],
    "rejected": [" d", " a a d b", " c"],
}


class Peer(NamedTuple):
    losses: Callable[[str], Tensor]  # a loss type of TRL → its loss of each pair
    batch_loss: Callable[[str], Tensor]  # … and of the whole batch
    score: Callable[..., dict[str, Tensor]]  # sequence_logps or mean_logps → the four arguments of a loss


def tiny_gpt2(seed: int):
    """Weights far from 0, so that the two models disagree by nats; no dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    none = {"bos_token_id": None, "eos_token_id": 1, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    sizes = {"vocab_size": 6, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 1}
    return GPT2LMHeadModel(GPT2Config(**sizes, **none, initializer_range=1.0)).eval()


def word_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "a", "b", "c", "d"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="module")
def trl(tmp_path_factory) -> Peer:
    """DPOTrainer gives a mean over the batch; a batch of one pair gives that pair's loss."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        trl = pytest.importorskip("trl", minversion="1.16")
        datasets = pytest.importorskip("datasets")
        trainers = {}
        for loss_type in ("sigmoid", "ipo", "hinge", "robust"):
            config = trl.DPOConfig(
                output_dir=str(tmp_path_factory.mktemp("trl")),
                loss_type=[loss_type],
                beta=TRL_BETA,
                label_smoothing=TRL_EPSILON if loss_type == "robust" else 0.0,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to="none",
            )
            trainers[loss_type] = trl.DPOTrainer(
                model=tiny_gpt2(0),
                ref_model=tiny_gpt2(1),
                args=config,
                train_dataset=datasets.Dataset.from_dict(PREFERENCES),
                processing_class=word_tokenizer(),
            )
    trainer = trainers["sigmoid"]
    examples = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    batch = trainer.data_collator(examples)
    assert batch["input_ids"].shape == (6, 6)  # three chosen, three rejected, right-padded

    def loss_of(loss_type, chosen_examples):
        with torch.no_grad():
            return trainers[loss_type].compute_loss(trainers[loss_type].model, trainer.data_collator(chosen_examples))

    def score(score_function):
        arguments = {}
        for name, model in {"policy": tiny_gpt2(0), "reference": tiny_gpt2(1)}.items():
            with torch.no_grad():
                logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            scores = score_function(
                logits=logits, input_ids=batch["input_ids"], completion_mask=batch["completion_mask"]
            )
            arguments[f"{name}_chosen_logps"], arguments[f"{name}_rejected_logps"] = scores.chunk(2)
        return arguments

    return Peer(
        losses=lambda loss_type: torch.stack([loss_of(loss_type, [example]) for example in examples]),
        batch_loss=lambda loss_type: loss_of(loss_type, examples),
        score=score,
    )


def assert_peers(peer: Peer, loss_type: str, ours: Tensor) -> None:
    """Pair by pair and as a batch; TRL computes in float32."""
    torch.testing.assert_close(peer.losses(loss_type), ours, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(peer.batch_loss(loss_type), ours.mean(), rtol=1e-5, atol=1e-5)


def test_trl_sigmoid_is_dpo(trl):
    """Oracle: TRL 1.16, DPOTrainer, loss_type "sigmoid"."""
    assert_peers(trl, "sigmoid", dpo_loss(**trl.score(sequence_logps), beta=TRL_BETA))


def test_trl_ipo_is_ipo_of_the_means_over_tokens(trl):
    """Oracle: TRL 1.16, loss_type "ipo". A deviation from the paper, whose h is made of sums."""
    assert_peers(trl, "ipo", ipo_loss(**trl.score(mean_logps), tau=TRL_BETA))
    on_sums = ipo_loss(**trl.score(sequence_logps), tau=TRL_BETA)
    assert (on_sums - trl.losses("ipo")).abs().min() > 0.1


def test_trl_hinge_is_slic_hf_of_the_log_ratios(trl):
    """Oracle: TRL 1.16, loss_type "hinge", RSO's: max(0, 1 − βh) = β max(0, 1/β − h).

    SLiC-HF itself has no reference: on plain log-probabilities it is another loss.
    """
    four = trl.score(sequence_logps)
    strengths = {"delta": 1 / TRL_BETA, "sft_weight": 0.0}
    log_ratios = {
        f"policy_{role}_logps": four[f"policy_{role}_logps"] - four[f"reference_{role}_logps"]
        for role in ("chosen", "rejected")
    }
    unused = torch.zeros(3)
    ours = TRL_BETA * slic_hf_loss(**log_ratios, policy_target_logps=unused, **strengths)
    assert 0 < (ours > 0).sum() < 3  # both sides of the kink are there
    assert_peers(trl, "hinge", ours)
    without_reference = slic_hf_loss(
        policy_chosen_logps=four["policy_chosen_logps"],
        policy_rejected_logps=four["policy_rejected_logps"],
        policy_target_logps=unused,
        **strengths,
    )
    assert (TRL_BETA * without_reference - ours).abs().max() > 0.1


def test_trl_robust_is_dpo_called_twice(trl):
    """Oracle: TRL 1.16, loss_type "robust" (its "sigmoid" ignores label_smoothing, so cDPO has no peer)."""
    assert_peers(trl, "robust", robust_dpo(TRL_EPSILON, TRL_BETA, **trl.score(sequence_logps)))
