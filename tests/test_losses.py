"""Every loss against hand values, a float64 re-derivation, finite differences and its landmarks."""

import itertools
import math

import pytest
import torch

from dapedu.losses import (
    bradley_terry_loss,
    click_loss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    plackett_luce_loss,
    robust_dpo_loss,
    rrhf_loss,
    simpo_loss,
    slic_hf_loss,
    spin_loss,
)
from tests.loss_cases import (
    CASES,
    draw,
    each_loss,
    margin_arguments,
    rows,
    swap,
)

torch.set_num_threads(1)

# ---- values ----

PAIR = {"policy_chosen_logps": -4.0, "policy_rejected_logps": -3.0}
PAIR_WITH_REFERENCE = PAIR | {
    "reference_chosen_logps": -7.0,
    "reference_rejected_logps": -4.0,
}  # h = 3 − 1 = 2
GOOD = {"policy_logps": -4.0, "reference_logps": -7.0, "reference_point": 1.0, "beta": 0.5, "undesirable_weight": 2.0}
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
    # e^r = 2, 3, 1, in this order: 2/6 · 3/4 = 1/4: loss log 4
    "plackett_luce": (
        plackett_luce_loss,
        {"ranked_rewards": [math.log(2), math.log(3), 0.0]},
        1.38629436111989,
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
    # d = 3, z₀ = 1: 1 − σ(.5 · 2) = 1/(1 + e)
    "kto, desirable": (kto_loss, GOOD | {"is_desirable": True}, 0.26894142136999),
    # 2 · σ(1) = 2e/(1 + e)
    "kto, undesirable": (kto_loss, GOOD | {"is_desirable": False}, 1.46211715726001),
    # p = ½ and ¼: odds 1 and 1/3, their ratio 3: log 2 + .5 log(4/3)
    "orpo": (
        orpo_loss,
        {"policy_chosen_mean_logps": -math.log(2), "policy_rejected_mean_logps": -math.log(4), "contrast_weight": 0.5},
        0.83698821678584,
    ),
    # 2 · (−1 + 2) − 1 = 1: log(1 + e⁻¹)
    "simpo": (
        simpo_loss,
        {"policy_chosen_mean_logps": -1.0, "policy_rejected_mean_logps": -2.0, "beta": 2.0, "gamma": 1.0},
        0.31326168751822,
    ),
    # (.8 · log(1 + e⁻¹) − .2 · log(1 + e)) / .6
    "robust_dpo": (robust_dpo_loss, PAIR_WITH_REFERENCE | {"beta": 0.5, "flip": 0.2}, -0.02007164581511),
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


@each_loss
def test_an_empty_batch_has_no_losses(case):
    """Oracle: nothing in, nothing out, and a gradient of nothing."""
    batch = draw(case, n=0, dtype=torch.float32)
    losses = case.loss(**{name: batch[name].requires_grad_(name in case.floats) for name in batch}, **case.strengths)
    assert (losses.shape, losses.dtype) == ((0,), torch.float32)
    losses.sum().backward()
    assert [batch[name].grad.shape for name in case.floats] == [batch[name].shape for name in case.floats]


@pytest.mark.parametrize(
    ("case", "name"),
    [pytest.param(case, name, id=f"{key}-{name}") for key, case in CASES.items() for name in case.strengths],
)
def test_a_strength_may_be_a_tensor(case, name):
    """Oracle: a float an example. `train_bandit` relies on this to train every strength at once."""
    batch = draw(case, n=5)
    values = torch.tensor([0.1, 0.5, 1.0, 2.0, 5.0], dtype=torch.float64) / (12 if name == "flip" else 1)
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
    corners = torch.cartesian_prod(*[torch.tensor([-1e4, 1e4], dtype=dtype)] * max(len(names), 3))
    if case.loss is plackett_luce_loss:
        batch = {"ranked_rewards": corners.clone().requires_grad_()}
    elif case.loss is rrhf_loss:
        batch = {"candidate_logps": corners.clone().requires_grad_(), "candidate_lengths": torch.ones_like(corners)}
        batch["rewards"] = torch.arange(3).expand_as(corners)
    else:
        batch = {name: corners[:, i].clone().requires_grad_() for i, name in enumerate(names)}
    if case.loss is kto_loss:
        batch["is_desirable"] = corners[:, 2] > 0
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


def test_plackett_luce_of_two_is_bradley_terry():
    """Oracle: `bradley_terry_loss`, and its gradient, on gaps from −30 to 30 nats."""
    pairs = torch.stack([torch.linspace(-20, 10, 31), torch.linspace(10, -20, 31)], dim=1).double().requires_grad_()
    ranked = plackett_luce_loss(ranked_rewards=pairs)
    compared = bradley_terry_loss(chosen_rewards=pairs[:, 0], rejected_rewards=pairs[:, 1])
    torch.testing.assert_close(ranked, compared, rtol=1e-12, atol=1e-14)
    slopes = [torch.autograd.grad(losses.sum(), pairs)[0] for losses in (ranked, compared)]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-14)


def test_plackett_luce_is_a_distribution_over_rankings():
    """Oracle: all 24 rankings of four, one by one: those that i leads have probability softmax(r)_i together."""
    rewards = torch.tensor([1.3, -0.4, 2.1, 0.0], dtype=torch.float64)
    rankings = torch.tensor(list(itertools.permutations(range(4))))
    probabilities = torch.exp(-plackett_luce_loss(ranked_rewards=rewards[rankings]))
    led_by = torch.stack([probabilities[rankings[:, 0] == i].sum() for i in range(4)])
    torch.testing.assert_close(led_by, torch.softmax(rewards, dim=0), rtol=0, atol=1e-14)


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


def test_rrhf_impossible_candidate_in_the_right_order_costs_nothing():
    """Oracle: the formula by hand: no violation, and −log π of the best is 4; ∞ · 0 would be no number."""
    loss = rrhf_loss(
        candidate_logps=torch.tensor([[-4.0, -math.inf]]),
        candidate_lengths=torch.ones(1, 2),
        rewards=torch.tensor([[2.0, 1.0]]),
        sft_weight=1,
    )
    assert loss.tolist() == [4.0]
