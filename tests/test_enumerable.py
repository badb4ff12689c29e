"""The enumerable world: tables against reading each completion, expectations against formulas of the bandit."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from dapedu.bandit import rlhf_optimum
from dapedu.enumerable import (
    best_of_n_policies,
    completion_logps,
    completion_rewards,
    expected_loss,
    fit_humans,
    frontier,
    frontier_reward,
    gold_wins,
    ipo_optima,
    log_partition,
    make_world,
    minimise,
    pair_weights,
    probabilities,
    rlhf_optima,
    sample_pairs,
    sampled_loss,
    wins_over,
)
from dapedu.evaluate import expected_reward, kl_divergence, total_variation
from dapedu.experiments import objective
from dapedu.logps import sequence_logps
from dapedu.losses import bradley_terry_loss, dpo_loss, ipo_loss
from dapedu.models import SIZES, ScalarHead, tiny_gpt2

SMALL = {"n_symbols": 3, "length": 3, "n_prompts": 4}  # 27 completions

# Two prompts with three completions each, for what is counted by hand or by brute force.
REWARDS = torch.tensor([[1.0, 0.0, 0.5], [2.0, 2.0, -1.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.3, 0.6]], dtype=torch.float64)
WINS = gold_wins(REWARDS, sharpness=1)
DPO, IPO = (dpo_loss, {"beta": 0.7}), (ipo_loss, {"tau": 0.2})


@pytest.fixture(scope="module")
def world():
    return make_world(**SMALL)


@pytest.fixture(scope="module")
def reference(world):
    model = tiny_gpt2("tiny", vocab_size=world.n_symbols, n_positions=world.n_positions)
    fit_humans(model, world, steps=60)
    return model


def test_the_world_by_hand(world):
    """Oracle: counted in plain Python; the human distribution sums to 1."""
    assert len(world.completions) == 27
    torch.testing.assert_close(world.human_logps.exp().sum(dim=1), torch.ones(4))
    for prompt, rewards in zip(world.prompts.tolist(), world.rewards.tolist(), strict=True):
        for completion, reward in zip(world.completions.tolist(), rewards, strict=True):
            repeats = sum(a == b for a, b in itertools.pairwise(completion))
            assert reward == completion.count(prompt[0]) - repeats


def test_prompts_differ_and_the_seed_decides(world):
    """Oracle: the same seed, the same world; another, another."""
    assert len({tuple(prompt) for prompt in world.prompts.tolist()}) == 4
    again, other = make_world(**SMALL), make_world(**SMALL, seed=1)
    assert torch.equal(world.human_logps, again.human_logps)
    assert not torch.equal(world.human_logps, other.human_logps)


def test_the_table_is_what_reading_each_completion_gives(world, reference):
    """Oracle: sequence_logps, one text at a time; and each prompt's completions exhaust the probability."""
    with torch.no_grad():
        table = completion_logps(reference, world)
        for row, prompt in enumerate(world.prompts):
            input_ids = torch.cat([prompt.expand(27, 2), world.completions], dim=1)
            alone = sequence_logps(
                logits=reference(input_ids).logits,
                input_ids=input_ids,
                completion_mask=torch.arange(5).expand(27, 5) >= 2,
            )
            torch.testing.assert_close(table[row], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(table.exp().sum(dim=1), torch.ones(4))


def test_a_completion_of_one_symbol_is_the_next_token():
    """Oracle: the softmax of the logits after the prompt."""
    world = make_world(n_symbols=3, length=1, n_prompts=2)
    model = tiny_gpt2("tiny", vocab_size=3, n_positions=3)
    with torch.no_grad():
        expected = model(world.prompts).logits[:, -1].log_softmax(dim=-1)
        torch.testing.assert_close(completion_logps(model, world), expected)


def test_fine_tuning_learns_how_people_write(world, reference):
    """Oracle: the KL, which starts above a tenth and falls a hundredfold."""
    fresh = tiny_gpt2("tiny", vocab_size=3, n_positions=5)
    human = world.human_logps.exp()
    with torch.no_grad():
        before, after = (kl_divergence(human, completion_logps(m, world).exp()).mean() for m in (fresh, reference))
    assert before > 0.1
    assert after < before / 100


@pytest.mark.parametrize(("loss", "strength"), [(dpo_loss, {"beta": 0.5}), (ipo_loss, {"tau": 0.5})])
def test_the_expected_loss_is_a_sum_over_all_pairs(loss, strength):
    """Oracle: two completions, written out: both orders, both labels."""
    logps, reference_logps = torch.tensor([[0.7, 0.3]]).log(), torch.tensor([[0.4, 0.6]]).log()
    wins = torch.tensor([[[0.5, 0.9], [0.1, 0.5]]])
    weights = torch.tensor([[0.16, 0.24], [0.24, 0.36]])
    by_hand = 0.0
    for i, j in itertools.product(range(2), repeat=2):
        for chosen, rejected, p in ((i, j, wins[0, i, j]), (j, i, wins[0, j, i])):
            by_hand += (
                weights[i, j]
                * p
                * loss(
                    policy_chosen_logps=logps[0, chosen],
                    policy_rejected_logps=logps[0, rejected],
                    reference_chosen_logps=reference_logps[0, chosen],
                    reference_rejected_logps=reference_logps[0, rejected],
                    **strength,
                )
            )
    pairs = pair_weights(reference_logps, wins)
    assert pairs.sum().item() == pytest.approx(1)
    torch.testing.assert_close(expected_loss(logps, reference_logps, pairs, loss, **strength), by_hand)


def test_exact_dpo_reaches_rlhfs_optimum(world, reference):
    """Oracle: rlhf_optimum, prompt by prompt; the target is far from where training starts."""
    with torch.no_grad():
        reference_logps = completion_logps(reference, world)
    start = probabilities(reference_logps)
    optimum = torch.stack([rlhf_optimum(r, 1.0, reference=p) for r, p in zip(world.rewards, start, strict=True)])
    weights = pair_weights(reference_logps, torch.sigmoid(world.rewards[:, :, None] - world.rewards[:, None, :]))
    policy = tiny_gpt2("tiny", vocab_size=3, n_positions=5)
    policy.load_state_dict(reference.state_dict())
    minimise(
        policy,
        lambda logps: expected_loss(logps, reference_logps, weights, dpo_loss, beta=1.0),
        world,
        steps=600,
        lr=4e-3,
    )
    with torch.no_grad():
        reached = probabilities(completion_logps(policy, world))
    assert (total_variation(optimum, start) > 0.05).all()
    assert (total_variation(optimum, reached) < 0.02).all()


@pytest.mark.parametrize("length", [1, 3])
def test_the_table_of_rewards_is_what_reading_each_completion_gives(length):
    """Oracle: ScalarHead.last, one text at a time; and its gradient."""
    world = make_world(n_symbols=3, length=length, n_prompts=2)
    head = ScalarHead(tiny_gpt2("tiny", vocab_size=3, n_positions=world.n_positions))
    torch.nn.init.normal_(head.linear.weight, generator=torch.Generator().manual_seed(0))
    table = completion_rewards(head, world)
    assert table.shape == (2, 3**length)
    alone = []
    for prompt, completion in itertools.product(world.prompts, world.completions):
        input_ids = torch.cat([prompt, completion])[None]
        alone.append(head.last(input_ids=input_ids, completion_mask=torch.arange(2 + length)[None] >= 2))
    torch.testing.assert_close(table, torch.cat(alone).view(2, -1), rtol=0, atol=1e-5)
    assert table.std() > 1
    wte = head.transformer.wte.weight
    for slope, expected in zip(
        torch.autograd.grad(table.square().mean(), [wte, head.linear.weight]),
        torch.autograd.grad(torch.cat(alone).square().mean(), [wte, head.linear.weight]),
        strict=True,
    ):
        torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-3)


def test_all_pairs_teach_the_gold_reward_but_for_a_number_a_prompt(world):
    """Oracle: the gold reward less each prompt's mean, which Bradley–Terry cannot see; every completion is as common.

    Where people hardly ever write a completion, its reward would be learnt last.
    """
    alike = torch.full_like(world.rewards, -math.log(27))
    weights = pair_weights(alike, gold_wins(world.rewards, sharpness=1))

    def objective(rewards):
        losses = bradley_terry_loss(
            chosen_rewards=rewards[:, :, None].expand_as(weights),
            rejected_rewards=rewards[:, None, :].expand_as(weights),
        )
        return (weights * losses).sum(dim=(1, 2)).mean()

    head = ScalarHead(tiny_gpt2("tiny", vocab_size=3, n_positions=5))
    minimise(head, objective, world, steps=300, lr=8e-3, table=completion_rewards)
    with torch.no_grad():
        found, gold = (r - r.mean(dim=1, keepdim=True) for r in (completion_rewards(head, world), world.rewards))
    torch.testing.assert_close(found, gold, rtol=0, atol=0.05)


def test_pairs_are_drawn_as_often_as_their_weights_say():
    """Oracle: pair_weights, to four standard errors of a share in 100,000; the seed decides."""
    pairs = sample_pairs(REFERENCE.log(), WINS, n=100_000, seed=1)
    counts = torch.zeros(2, 3, 3, dtype=torch.float64)
    counts.index_put_(tuple(pairs), torch.tensor(1e-5, dtype=torch.float64), accumulate=True)
    # A pair of equal completions is drawn in one order only, and has one label: chosen and rejected at once.
    torch.testing.assert_close(counts, pair_weights(REFERENCE.log(), WINS) / 2, rtol=0, atol=4 * (0.25 / 1e5) ** 0.5)
    again, other = (sample_pairs(REFERENCE.log(), WINS, n=100, seed=seed) for seed in (1, 2))
    assert torch.equal(torch.stack(again), torch.stack(sample_pairs(REFERENCE.log(), WINS, n=100, seed=1)))
    assert not torch.equal(torch.stack(again), torch.stack(other))


@pytest.mark.parametrize(("loss", "strength"), [DPO, IPO])
def test_the_sampled_loss_is_the_expected_loss_on_average(loss, strength):
    """Oracle: expected_loss, to four standard errors of the mean over 500 draws of 40 pairs."""
    policy = torch.log_softmax(torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double(), dim=1)
    reference = REFERENCE.log()
    drawn = torch.stack(
        [
            sampled_loss(policy, reference, sample_pairs(reference, WINS, n=40, seed=seed), loss, **strength)
            for seed in range(500)
        ]
    )
    expected = expected_loss(policy, reference, pair_weights(reference, WINS), loss, **strength)
    assert abs(drawn.mean() - expected) < 4 * drawn.std() / 500**0.5


@pytest.mark.parametrize(
    ("loss", "strength", "optima"),
    [(*DPO, rlhf_optima(REWARDS, 0.7, reference=REFERENCE)), (*IPO, ipo_optima(WINS, 0.2, reference=REFERENCE))],
)
def test_the_expected_loss_is_least_at_the_optimum(loss, strength, optima):
    """Oracle: autograd; the slope is 0 there, and the loss higher a little to any side."""
    weights = pair_weights(REFERENCE.log(), WINS)

    def value(logits):
        return expected_loss(torch.log_softmax(logits, dim=1), REFERENCE.log(), weights, loss, **strength)

    logits = optima.log().requires_grad_()
    (slope,) = torch.autograd.grad(value(logits), logits)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-12)
    aside = 0.1 * torch.randn(20, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    assert all(value(logits + step) > value(logits) for step in aside)


def test_z_and_the_optimum_by_hand():
    """Oracle: sums in plain Python; the objective's value at the optimum is β log Z."""
    beta = 0.7
    optima = rlhf_optima(REWARDS, beta, reference=REFERENCE)
    log_z = log_partition(REWARDS, beta, reference=REFERENCE)
    for row in range(2):
        terms = [p * math.exp(r / beta) for p, r in zip(REFERENCE[row].tolist(), REWARDS[row].tolist(), strict=True)]
        assert log_z[row].item() == pytest.approx(math.log(sum(terms)))
        assert optima[row].tolist() == pytest.approx([term / sum(terms) for term in terms])
    worth = expected_reward(optima, REWARDS) - beta * kl_divergence(optima, REFERENCE)
    torch.testing.assert_close(worth, beta * log_z)


def test_best_of_three_and_its_win_rate_by_listing_all_draws():
    """Oracle: every triple of completions, the best kept, ties shared alike; then every opponent."""
    policies = best_of_n_policies(REWARDS, 3, reference=REFERENCE)
    rates = expected_reward(policies, wins_over(REFERENCE, gold_wins(REWARDS)))
    for row in range(2):
        rewards, p = REWARDS[row].tolist(), REFERENCE[row].tolist()
        expected, rate = [0.0] * 3, 0.0
        for draws in itertools.product(range(3), repeat=3):
            best = [y for y in draws if rewards[y] == max(rewards[z] for z in draws)]
            for y in best:
                expected[y] += math.prod(p[z] for z in draws) / len(best)
        for y, other in itertools.product(range(3), repeat=2):
            rate += expected[y] * p[other] * (rewards[y] > rewards[other]) + 0.5 * expected[y] * p[other] * (
                rewards[y] == rewards[other]
            )
        assert policies[row].tolist() == pytest.approx(expected)
        assert rates[row].item() == pytest.approx(rate)


def test_the_frontier_is_what_an_optimiser_finds_that_knows_no_beta():
    """Oracle: scipy, mean reward over two prompts under a limit on the mean KL."""

    def policies(logits):
        return torch.softmax(torch.from_numpy(logits).view(2, 3), dim=1)

    def mean_kl(logits):
        return kl_divergence(policies(logits), REFERENCE).mean().item()

    curve = frontier(REWARDS, [2.0, 0.7], reference=REFERENCE)
    for kl, reward in zip(curve.kl.tolist(), curve.rewards.tolist(), strict=True):
        found = minimize(
            lambda logits: -expected_reward(policies(logits), REWARDS).mean().item(),
            np.log(REFERENCE.numpy()).flatten(),
            method="SLSQP",
            constraints={"type": "ineq", "fun": lambda logits, kl=kl: kl - mean_kl(logits)},
            options={"maxiter": 500, "ftol": 1e-12},
        )
        assert reward == pytest.approx(-found.fun, abs=1e-5)
        assert frontier_reward(REWARDS, kl, reference=REFERENCE) == pytest.approx(reward, abs=1e-9)


def test_two_prices_for_a_nat_are_worse_than_one():
    """Oracle: optima of different β on the two prompts lie below the frontier at their mean KL."""
    mixed = torch.stack([rlhf_optima(REWARDS, b, reference=REFERENCE)[row] for row, b in enumerate((2.0, 0.5))])
    kl = kl_divergence(mixed, REFERENCE).mean().item()
    assert expected_reward(mixed, REWARDS).mean() < frontier_reward(REWARDS, kl, reference=REFERENCE) - 0.01


def test_nothing_crosses_the_frontier_and_its_ends_are_known():
    """Oracle: a thousand random policies; the reference's reward; the best reward; the bandit's frontier."""
    generator = torch.Generator().manual_seed(0)
    policies = torch.softmax(3 * torch.randn(1_000, 2, 3, generator=generator).double(), dim=2)
    kls, rewards = kl_divergence(policies, REFERENCE).mean(dim=1), expected_reward(policies, REWARDS).mean(dim=1)
    for kl, reward in zip(kls.tolist(), rewards.tolist(), strict=True):
        assert reward <= frontier_reward(REWARDS, kl, reference=REFERENCE) + 1e-9
    start = expected_reward(REFERENCE, REWARDS).mean().item()
    assert frontier_reward(REWARDS, 0.0, reference=REFERENCE) == pytest.approx(start, abs=1e-4)
    assert frontier_reward(REWARDS, 9.0, reference=REFERENCE) == pytest.approx(1.5, abs=1e-3)
    one, alone = REWARDS[:1], REFERENCE[:1]
    bandit = objective.frontier_reward(one[0], 0.3, reference=alone[0])
    assert frontier_reward(one, 0.3, reference=alone) == pytest.approx(bandit, abs=1e-9)


def test_a_table_in_float32_becomes_probabilities_that_sum_to_one():
    """Oracle: the bandit's own check, which float32 fails, and the table itself."""
    logps = torch.log_softmax(torch.randn(3, 5_000, generator=torch.Generator().manual_seed(0)), dim=1) + 1e-5
    found = probabilities(logps.requires_grad_())
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.float(), logps.exp(), rtol=1e-4, atol=0)
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_pairs(REFERENCE.log(), WINS, n=0, seed=0), "sample_pairs: n is 0, expected at least 1"),
        (lambda: gold_wins(REWARDS, sharpness=0.0), "gold_wins: sharpness is 0.0, expected > 0"),
        (
            lambda: frontier_reward(REWARDS, -0.1, reference=REFERENCE),
            "frontier_reward: kl is -0.1, expected ≥ 0",
        ),
        (
            lambda: frontier_reward(torch.ones(2, 3), 0.1, reference=REFERENCE),
            "frontier_reward: every prompt's rewards are all equal",
        ),
        (lambda: rlhf_optima(REWARDS, 0.0, reference=REFERENCE), "rlhf_optimum: beta is 0.0, expected > 0"),
    ],
)
def test_an_error_says_which_argument(call, message):
    """Oracle: the message names function, argument and value."""
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_symbols": 1}, "n_symbols is 1 and length 4, expected at least 2 and 1"),
        ({"length": 0}, "n_symbols is 6 and length 0"),
        ({"n_symbols": 2, "n_prompts": 5}, "n_prompts is 5, expected from 1 to 4"),
    ],
)
def test_a_world_that_cannot_be(arguments, message):
    """Oracle: the message names function, argument and value."""
    with pytest.raises(ValueError, match=f"^make_world: {message}"):
        make_world(**arguments)


def test_a_model_with_another_vocabulary_is_refused(world):
    """Oracle: the message names both sizes."""
    with pytest.raises(ValueError, match=r"^completion_logps: model has a vocabulary of 7, expected 3 symbols"):
        completion_logps(tiny_gpt2("tiny", vocab_size=7, n_positions=5), world)
    with pytest.raises(ValueError, match=r"^completion_rewards: head has a vocabulary of 7, expected 3 symbols"):
        completion_rewards(ScalarHead(tiny_gpt2("tiny", vocab_size=7, n_positions=5)), world)


def test_a_model_is_its_seed_and_leaves_other_random_numbers_alone():
    """Oracle: equal weights for equal seeds; the caller's generator goes on as if nothing had happened."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, third = (tiny_gpt2("tiny", vocab_size=3, n_positions=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.transformer.wte.weight, third.transformer.wte.weight)


def test_an_unknown_size_is_named():
    """Oracle: the message lists the sizes there are."""
    with pytest.raises(ValueError, match=f"^tiny_gpt2: no size 'huge'; there are {', '.join(SIZES)}"):
        tiny_gpt2("huge", vocab_size=3, n_positions=5)
