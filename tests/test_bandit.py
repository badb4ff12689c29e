"""Training on the bandit against closed forms, torch.optim.Adam and autograd."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from dapedu.bandit import (
    DATASETS,
    bradley_terry_rewards,
    draw_batches,
    ipo_optimum,
    rlhf_optimum,
    train_bandit,
)
from dapedu.evaluate import kl_divergence
from dapedu.losses import dpo_loss, ipo_loss, spin_loss

torch.set_num_threads(1)

STRENGTHS = [0.1, 0.5, 1.0]
CYCLE_AND_MORE = [(0, 1), (0, 1), (1, 2), (2, 0)]  # {ab, ab, bc, ca}: every win lies on the cycle
REFERENCE = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def train(pairs, loss, strengths=STRENGTHS, **options):
    """With three responses unless said otherwise."""
    return train_bandit(pairs, loss, strengths, **{"n_responses": 3} | options)


def dpo_through_autograd(
    *, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta
):
    return dpo_loss(
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
        beta=beta,
    )


def ipo_through_autograd(
    *, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, anything
):
    """The strength may have any name."""
    return ipo_loss(
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
        tau=anything,
    )


# ---- the paper's toy: ten seeds, 18,000 steps, batches of nine ----


@pytest.fixture(scope="module")
def toy() -> dict[tuple[str, str], Tensor]:
    """Means over seeds of the final policies, shape (strengths, responses), for each dataset and loss."""
    return {
        (name, loss.__name__): train(pairs, loss, record_every=18_000).probabilities[:, :, -1].mean(dim=1)
        for name, pairs in DATASETS.items()
        for loss in (dpo_loss, ipo_loss)
    }


def test_toy_ipo_on_d1_ends_at_its_closed_form(toy):
    """Oracle: π ∝ (e^{2/(3τ)}, e^{1/(3τ)}, 1), written out here."""
    for policy, tau in zip(toy["D1", "ipo_loss"], STRENGTHS, strict=True):
        expected = torch.softmax(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64) / (3 * tau), dim=0)
        torch.testing.assert_close(policy, expected, rtol=0, atol=0.01)


def test_toy_dpo_on_d1_collapses_for_every_beta(toy):
    """Oracle: arXiv:2310.12036, Figure 1: no finite optimum, everything goes to a."""
    assert (toy["D1", "dpo_loss"][:, 0] > 0.99).all()


def test_toy_dpo_on_d3_as_meant_gives_b_up_for_every_beta_and_ipo_does_not(toy):
    """Oracle: Figure 2's description; IPO's π(b) = 1/(1 + 2e^{1/(2τ)}); the start is symmetric in a and c."""
    dpo, ipo = toy["D3 as meant", "dpo_loss"], toy["D3 as meant", "ipo_loss"]
    expected = torch.tensor([1 / (1 + 2 * math.exp(1 / (2 * tau))) for tau in STRENGTHS], dtype=torch.float64)
    assert (dpo[:, 1] < 1e-4).all()
    torch.testing.assert_close(ipo[:, 1], expected, rtol=0, atol=0.01)
    for policies in (dpo, ipo):
        torch.testing.assert_close(policies[:, 0], policies[:, 2], rtol=0, atol=0.03)


@pytest.mark.parametrize("loss", ["dpo_loss", "ipo_loss"])
@pytest.mark.parametrize("name", ["D2", "D3 as printed"])
def test_toy_stays_near_uniform_where_every_pair_is_answered(toy, name, loss):
    """Oracle: the optimum is uniform by symmetry, and in the printed D3 c is in no pair.

    So the printed D3 cannot show the collapse of Figure 2. At .1 even means of ten seeds wander.
    """
    torch.testing.assert_close(toy[name, loss][1:], torch.full((2, 3), 1 / 3, dtype=torch.float64), rtol=0, atol=0.03)


def test_an_unseen_response_gets_no_gradient():
    """Oracle: π(c)/π_ref(c) moves only by the normaliser: logit c stays at 0 while a and b move."""
    run = train([(0, 1)], ipo_loss, [0.5], seeds=1, batch_size=None, steps=2000, reference=REFERENCE)
    end = run.probabilities[0, 0, -1]
    # IPO's optimum of one pair: h = 1/(2τ) = 1, shared equally: ½ and −½.
    ratios = torch.tensor([math.exp(0.5), math.exp(-0.5), 1.0], dtype=torch.float64)
    torch.testing.assert_close(end, REFERENCE * ratios / (REFERENCE * ratios).sum(), rtol=0, atol=1e-9)


# ---- full batches: the closed forms to many digits ----


@pytest.mark.parametrize("reference", [None, REFERENCE], ids=["uniform", "uneven"])
@pytest.mark.parametrize("name", DATASETS)
def test_ipo_with_full_batches_reaches_its_optimum(name, reference):
    """Oracle: `ipo_optimum`, a least-squares solution that shares nothing with the training loop."""
    run = train(DATASETS[name], ipo_loss, seeds=1, batch_size=None, steps=2000, reference=reference)
    for policy, tau in zip(run.probabilities[:, 0, -1], STRENGTHS, strict=True):
        expected = ipo_optimum(DATASETS[name], tau, n_responses=3, reference=reference)
        torch.testing.assert_close(policy, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("loss", [dpo_loss, spin_loss])
@pytest.mark.parametrize("reference", [None, REFERENCE], ids=["uniform", "uneven"])
def test_dpo_with_a_finite_optimum_reaches_rlhfs(loss, reference):
    """Oracle: π_ref exp(r/β) with Bradley–Terry's rewards; by hand at β = .5: (.62, .12, .27)."""
    rewards = bradley_terry_rewards(CYCLE_AND_MORE, n_responses=3)
    run = train(CYCLE_AND_MORE, loss, seeds=1, batch_size=None, steps=6000, reference=reference)
    for policy, beta in zip(run.probabilities[:, 0, -1], STRENGTHS, strict=True):
        expected = rlhf_optimum(rewards, beta, reference=reference)
        torch.testing.assert_close(policy, expected, rtol=0, atol=1e-6)
    if reference is None:
        by_hand = torch.tensor([0.62, 0.12, 0.27], dtype=torch.float64)
        torch.testing.assert_close(run.probabilities[1, 0, -1], by_hand, rtol=0, atol=0.005)


def test_larger_strengths_stay_nearer_the_reference():
    """Oracle: β weighs KL(π‖π_ref); "β → 0 keeps the policy near the reference" is backwards."""
    strengths = [0.2, 0.5, 1.0, 2.0, 5.0]
    for loss in (dpo_loss, ipo_loss):
        run = train(CYCLE_AND_MORE, loss, strengths, seeds=1, batch_size=None, steps=4000, reference=REFERENCE)
        distances = kl_divergence(run.probabilities[:, 0, -1], REFERENCE)
        assert (distances.diff() < -1e-4).all()
        assert distances[-1] > 1e-4


# ---- the optimiser, the gradient and the batches ----


@pytest.mark.parametrize(
    ("known", "plain"),
    [(dpo_loss, dpo_through_autograd), (spin_loss, dpo_through_autograd), (ipo_loss, ipo_through_autograd)],
    ids=["dpo", "spin", "ipo"],
)
@pytest.mark.parametrize("reference", [None, REFERENCE], ids=["uniform", "uneven"])
def test_closed_form_gradient_is_autograds(known, plain, reference):
    """Oracle: autograd through log-softmax and the public loss, over the first 200 steps."""
    options = {"seeds": 3, "steps": 200, "record_every": 1, "reference": reference}
    closed = train(CYCLE_AND_MORE, known, **options).probabilities
    torch.testing.assert_close(closed, train(CYCLE_AND_MORE, plain, **options).probabilities, rtol=0, atol=1e-10)
    assert (closed[..., -1, :] - closed[..., 0, :]).abs().max() > 0.05  # it went somewhere


@pytest.mark.parametrize(("loss", "name"), [(dpo_loss, "beta"), (ipo_loss, "tau")], ids=["dpo", "ipo"])
def test_training_is_that_of_torchs_adam(loss, name):
    """Oracle: torch 2.13's Adam in a plain loop over one setting and one seed, on the same batches."""
    pairs, steps, lr = DATASETS["D1"], 300, 0.03
    run = train(pairs, loss, seeds=2, steps=steps, lr=lr, record_every=1, seed=5, reference=REFERENCE)
    shares = draw_batches(len(pairs), seeds=2, steps=steps, seed=5)
    theta = REFERENCE.log().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=lr)
    path = []
    for step in range(steps):
        logps = torch.log_softmax(theta, dim=0)
        path.append(logps.detach().exp())
        losses = torch.stack(
            [
                loss(
                    policy_chosen_logps=logps[winner],
                    policy_rejected_logps=logps[loser],
                    reference_chosen_logps=REFERENCE.log()[winner],
                    reference_rejected_logps=REFERENCE.log()[loser],
                    **{name: 0.5},
                )
                for winner, loser in pairs
            ]
        )
        optimiser.zero_grad()
        (shares[step, 1] @ losses).backward()
        optimiser.step()
    path.append(torch.softmax(theta.detach(), dim=0))
    torch.testing.assert_close(run.probabilities[1, 1], torch.stack(path), rtol=0, atol=1e-10)


def test_batches_are_nine_draws_with_replacement():
    """Oracle: shares are ninths that sum to 1, with the mean and the variance of a multinomial."""
    shares = draw_batches(4, seeds=3, steps=5000)
    assert shares.shape == (5000, 3, 4)
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(5000, 3, dtype=torch.float64))
    ninths = shares * 9
    torch.testing.assert_close(ninths, ninths.round(), rtol=0, atol=1e-12)
    flat = shares.flatten(0, 1)
    assert flat.mean(dim=0).tolist() == pytest.approx([0.25] * 4, abs=0.005)  # 4 standard errors
    assert flat.var(dim=0).tolist() == pytest.approx([0.25 * 0.75 / 9] * 4, rel=0.05)


def test_defaults_are_the_papers():
    """Oracle: arXiv:2310.12036, §5.4; `draw_batches` starts from the same seed as a run."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(train_bandit).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    paper = {"seeds": 10, "steps": 18_000, "lr": 0.01, "batch_size": 9}
    assert defaults == paper | {"reference": None, "record_every": 100, "seed": 0, "device": "cpu"}
    explicit = draw_batches(4, seeds=1, steps=20, batch_size=9, seed=0)
    torch.testing.assert_close(draw_batches(4, seeds=1, steps=20), explicit, rtol=0, atol=0)


def test_a_batch_of_one_holds_one_pair():
    """Oracle: one share is 1, the others 0, and every pair has its turn."""
    shares = draw_batches(3, seeds=1, steps=50, batch_size=1)
    assert shares.sort(dim=-1).values.unique(dim=0).tolist() == [[[0, 0, 1]]]
    assert (shares.sum(dim=0) > 0).all()


def test_a_full_batch_holds_every_pair_once():
    """Oracle: 1/n each, at every step."""
    shares = draw_batches(3, seeds=2, steps=5, batch_size=None)
    torch.testing.assert_close(shares, torch.full((5, 2, 3), 1 / 3, dtype=torch.float64), rtol=0, atol=0)


def test_seeds_repeat_and_do_not_depend_on_how_many_run():
    """Oracle: run 2 of seeds 0, 1, 2 is run 0 of seed 2, and another seed is another run."""
    options = {"steps": 50, "record_every": 10}
    three = train(DATASETS["D1"], dpo_loss, seeds=3, **options).probabilities
    again = train(DATASETS["D1"], dpo_loss, seeds=3, **options).probabilities
    alone = train(DATASETS["D1"], dpo_loss, seeds=1, seed=2, **options).probabilities
    torch.testing.assert_close(three, again, rtol=0, atol=0)
    torch.testing.assert_close(three[:, 2:], alone, rtol=0, atol=1e-13)
    assert (three[:, 0] - three[:, 1]).abs().max() > 1e-4


def test_strengths_do_not_depend_on_which_others_run():
    """Oracle: each strength alone."""
    together = train(DATASETS["D1"], ipo_loss, seeds=2, steps=50).probabilities
    for i, strength in enumerate(STRENGTHS):
        alone = train(DATASETS["D1"], ipo_loss, [strength], seeds=2, steps=50).probabilities
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("steps", "record_every", "expected"),
    [(10, 3, [0, 3, 6, 9, 10]), (10, 5, [0, 5, 10]), (10, 100, [0, 10]), (1, 1, [0, 1])],
)
def test_records_say_when_they_were_taken(steps, record_every, expected):
    """Oracle: the steps by hand; the policies at those steps of a run that records every one."""
    run = train(DATASETS["D1"], dpo_loss, seeds=2, steps=steps, record_every=record_every, reference=REFERENCE)
    every = train(DATASETS["D1"], dpo_loss, seeds=2, steps=steps, record_every=1, reference=REFERENCE)
    assert run.steps.tolist() == expected
    assert run.probabilities.shape == (3, 2, len(expected), 3)
    assert run.probabilities.dtype == torch.float64
    torch.testing.assert_close(run.probabilities, every.probabilities[:, :, expected], rtol=0, atol=0)
    torch.testing.assert_close(run.probabilities[:, :, 0], REFERENCE.expand(3, 2, 3), rtol=0, atol=1e-15)


def test_one_step_of_adam_is_the_learning_rate():
    """Oracle: Adam's first step is lr · sign(gradient), so log π(a)/π(b) grows by 2 lr."""
    run = train([(0, 1)], dpo_loss, [0.5], seeds=1, steps=1, lr=0.01)
    odds = run.probabilities[0, 0, 1, 0] / run.probabilities[0, 0, 1, 1]
    assert odds.log().item() == pytest.approx(0.02, abs=1e-8)


def test_inputs_stay_as_they_were():
    """Oracle: copies made before."""
    pairs, strengths, reference = list(DATASETS["D1"]), list(STRENGTHS), REFERENCE.clone()
    train(pairs, ipo_loss, strengths, seeds=1, steps=3, reference=reference)
    assert (pairs, strengths) == (DATASETS["D1"], STRENGTHS)
    torch.testing.assert_close(reference, REFERENCE, rtol=0, atol=0)


def test_the_papers_datasets():
    """Oracle: arXiv:2310.12036, §5.4, winner first; the last is our reading of the third."""
    assert DATASETS == {
        "D1": [(0, 1), (1, 2), (0, 2)],
        "D2": [(0, 1), (1, 2), (2, 0)],
        "D3 as printed": [(0, 1), (1, 0)],
        "D3 as meant": [(0, 1), (2, 1)],
    }
