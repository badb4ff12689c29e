"""The formulas of PPO and RLOO against loops in Python's own floats, finite differences, and sums over all there is."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from dapedu.ppo import (
    PPOSettings,
    RLOOSettings,
    adapted_kl_coef,
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    kl_loss,
    kl_shaped_rewards,
    masked_mean,
    normalised,
    rloo_advantages,
)

torch.set_num_threads(1)

LENGTHS = [5, 1, 3, 5, 2]
MASK = torch.arange(5) < torch.tensor(LENGTHS)[:, None]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_equal(actual: Tensor, expected: Tensor | list) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


# ---- rewards of tokens, advantages ----


@pytest.mark.parametrize("beta", [0.0, 0.3, torch.tensor(0.3, dtype=torch.float64)])
def test_kl_shaped_rewards_token_by_token(beta):
    """Oracle: a loop; what stands behind a completion's end is garbage."""
    rewards, policy, reference = random(0, 5), random(1, 5, 5), random(2, 5, 5)
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            expected[row, t] = -beta * (policy[row, t] - reference[row, t])
        expected[row, length - 1] += rewards[row]
    shaped = kl_shaped_rewards(rewards=rewards, policy_logps=policy, reference_logps=reference, mask=MASK, beta=beta)
    assert_equal(shaped, expected)
    assert_equal(shaped.sum(dim=1), rewards - beta * (MASK * (policy - reference)).sum(dim=1))


@pytest.mark.parametrize("gae_lambda", [0, 0.0, 0.5, 0.95, 1, 1.0])
def test_gae_token_by_token(gae_lambda):
    """Oracle: the recursion from the last token on, Â_t = δ_t + λ Â_{t+1}; values behind the end are garbage."""
    rewards, values = random(0, 5, 5) * MASK, random(1, 5, 5)
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        after, value_after = 0.0, 0.0
        for t in reversed(range(length)):
            surprise = rewards[row, t].item() + value_after - values[row, t].item()
            after = expected[row, t] = surprise + gae_lambda * after
            value_after = values[row, t].item()
    assert_equal(gae(rewards=rewards, values=values, mask=MASK, gae_lambda=gae_lambda), expected)


def test_the_ends_of_gae_by_hand():
    """Oracle: rewards 1, 2, 4 and values 10, 20, 30: the returns 7, 6, 4 less the values; and what one step tells."""
    rewards, values = (torch.tensor([row]) for row in ([1.0, 2.0, 4.0, 0.0], [10.0, 20.0, 30.0, 99.0]))
    mask = torch.tensor([[True, True, True, False]])
    assert gae(rewards=rewards, values=values, mask=mask, gae_lambda=1).tolist() == [[-3.0, -14.0, -26.0, 0.0]]
    assert gae(rewards=rewards, values=values, mask=mask, gae_lambda=0).tolist() == [[11.0, 12.0, -26.0, 0.0]]


@pytest.mark.parametrize("k", [2, 3, 7])
def test_each_is_compared_with_the_others(k):
    """Oracle: a loop over the others."""
    rewards = random(k, 4, k)
    expected = [
        [own - sum(others := row[:i] + row[i + 1 :]) / len(others) for i, own in enumerate(row)]
        for row in rewards.tolist()
    ]
    assert_equal(rloo_advantages(rewards), expected)


def test_means_and_norms_are_of_the_completions_tokens():
    """Oracle: Python's sums over a list of the tokens."""
    values = random(3, 5, 5)
    tokens = [values[row, t].item() for row, length in enumerate(LENGTHS) for t in range(length)]
    mean = sum(tokens) / len(tokens)
    deviation = math.sqrt(sum((token - mean) ** 2 for token in tokens) / len(tokens))
    assert masked_mean(values, MASK).item() == pytest.approx(mean)
    assert_equal(normalised(values, MASK)[MASK], [(token - mean) / (deviation + 1e-8) for token in tokens])
    assert not normalised(values, MASK)[~MASK].any()
    assert not normalised(torch.full((5, 5), 3.0), MASK).any()  # nothing is better than anything else


def test_the_kl_coefficient_by_hand():
    """Oracle: a tenth of the relative error, which counts up to a fifth."""
    coefficient = torch.tensor(0.5)
    for kl, expected in {6.6: 0.5 * 1.01, 5.4: 0.5 * 0.99, 6.0: 0.5, 60.0: 0.51, -1.0: 0.49, 4.0: 0.49}.items():
        assert adapted_kl_coef(coefficient, torch.tensor(kl), target_kl=6.0).item() == pytest.approx(expected)


# ---- losses ----


def gradient_by_differences(loss, at: Tensor) -> Tensor:
    step = 1e-6
    shifts = step * torch.eye(len(at), dtype=torch.float64)
    return torch.stack([(loss(at + shift).sum() - loss(at - shift).sum()) / (2 * step) for shift in shifts])


@pytest.mark.parametrize("clip_range", [0.2, math.inf])
def test_the_policy_loss_token_by_token(clip_range):
    """Oracle: a loop with Python's min and max; its gradient by differences, which is none where a gain is clipped."""
    policy, old, advantages = 0.4 * random(0, 200), 0.4 * random(1, 200), random(2, 200)
    ratios = [math.exp(p - o) for p, o in zip(policy.tolist(), old.tolist(), strict=True)]
    expected = [
        -min(ratio * advantage, min(max(ratio, 1 - clip_range), 1 + clip_range) * advantage)
        for ratio, advantage in zip(ratios, advantages.tolist(), strict=True)
    ]

    def loss(logps: Tensor) -> Tensor:
        return clipped_policy_loss(policy_logps=logps, old_logps=old, advantages=advantages, clip_range=clip_range)

    assert_equal(loss(policy), expected)
    (gradient,) = torch.autograd.grad(loss(policy.requires_grad_()).sum(), policy)
    torch.testing.assert_close(gradient, gradient_by_differences(loss, policy.detach()), rtol=1e-6, atol=1e-8)
    gained = [
        (ratio > 1 + clip_range and advantage > 0) or (ratio < 1 - clip_range and advantage < 0)
        for ratio, advantage in zip(ratios, advantages.tolist(), strict=True)
    ]
    assert (gradient == 0).tolist() == gained
    assert any(gained) == (clip_range < 1)


@pytest.mark.parametrize("clip_range", [0.2, math.inf])
def test_the_value_loss_token_by_token(clip_range):
    """Oracle: a loop: the larger of two squares; its gradient by differences; ∞ is half the squared error."""
    values, old, returns = random(0, 200), random(1, 200), random(2, 200)
    expected = []
    for value, before, target in zip(values.tolist(), old.tolist(), returns.tolist(), strict=True):
        clipped = before + min(max(value - before, -clip_range), clip_range)
        expected.append(max((value - target) ** 2, (clipped - target) ** 2) / 2)

    def loss(values: Tensor) -> Tensor:
        return clipped_value_loss(values=values, old_values=old, returns=returns, clip_range=clip_range)

    assert_equal(loss(values), expected)
    (gradient,) = torch.autograd.grad(loss(values.requires_grad_()).sum(), values)
    torch.testing.assert_close(gradient, gradient_by_differences(loss, values.detach()), rtol=1e-5, atol=1e-7)
    if clip_range == math.inf:
        assert_equal(loss(values.detach()), (values.detach() - returns) ** 2 / 2)


def test_the_kl_loss_has_the_mean_of_one_kl_and_the_gradient_of_the_other():
    """Oracle: both KLs as sums over the vocabulary, the second one differentiated."""
    logits = random(0, 7).requires_grad_()
    policy, reference = logits.log_softmax(dim=0), random(1, 7).log_softmax(dim=0)
    losses = kl_loss(policy_logps=policy, reference_logps=reference)
    assert (losses > 0).all()
    expected = (policy.exp().detach() * losses).sum()
    assert_equal(expected, (policy.exp() * (policy - reference)).sum().detach())
    (gradient,) = torch.autograd.grad(expected, logits, retain_graph=True)
    (of_forward,) = torch.autograd.grad((reference.exp() * (reference - policy)).sum(), logits, retain_graph=True)
    (of_reverse,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits)
    assert_equal(gradient, of_forward)
    assert (gradient - of_reverse).abs().max() > 0.05
    near = kl_loss(policy_logps=torch.tensor(-1.0), reference_logps=torch.tensor(-1.0001))
    assert near.item() == pytest.approx(0.5e-8, rel=1e-3)  # d²/2, and not lost in 1 − 1


# ---- estimates, over all that can be drawn ----

BETA = 0.4
ENDS = 0  # of three tokens
COMPLETIONS = [[ENDS], *([first, second] for first in (1, 2) for second in range(3))]
MASK_OF_ALL = torch.tensor([[True, len(tokens) == 2] for tokens in COMPLETIONS])
REWARDS = random(9, len(COMPLETIONS))


class Tables:
    """A policy that is two tables: of the first token, and of the second by the first; and another as reference."""

    def __init__(self) -> None:
        self.logits = random(5, 4, 3).requires_grad_()
        self.policy, self.reference = self._logps(self.logits), self._logps(random(6, 4, 3))
        self.log_ratios = (self.policy - self.reference).sum(dim=1)
        self.probabilities = self.policy.sum(dim=1).exp().detach()
        objective = (self.policy.sum(dim=1).exp() * (REWARDS - BETA * self.log_ratios)).sum()
        (self.ascent,) = torch.autograd.grad(objective, self.logits, retain_graph=True)

    @staticmethod
    def _logps(logits: Tensor) -> Tensor:
        table = logits.log_softmax(dim=1)
        zero = torch.zeros((), dtype=torch.float64)
        rows = [
            torch.stack([table[0, tokens[0]], table[1 + tokens[0], tokens[1]] if len(tokens) == 2 else zero])
            for tokens in COMPLETIONS
        ]
        return torch.stack(rows)  # (completions, 2)

    def token_rewards(self) -> Tensor:
        return kl_shaped_rewards(
            rewards=REWARDS,
            policy_logps=self.policy.detach(),
            reference_logps=self.reference,
            mask=MASK_OF_ALL,
            beta=BETA,
        )

    def descent(self, advantages: Tensor, rows: list[int] | None = None) -> Tensor:
        """The gradient of PPO's loss, summed over tokens; of all completions, weighted by their probabilities."""
        weights, rows = (self.probabilities, list(range(7))) if rows is None else (torch.ones(len(rows)), rows)
        losses = clipped_policy_loss(
            policy_logps=self.policy[rows],
            old_logps=self.policy[rows].detach(),
            advantages=advantages,
            clip_range=0.2,
        )
        total = (weights[:, None] * losses * MASK_OF_ALL[rows]).sum()
        return torch.autograd.grad(total, self.logits, retain_graph=True)[0]


@pytest.mark.parametrize("k", [2, 3])
def test_the_expected_step_of_rloo_is_the_gradient_of_the_objective(k):
    """Oracle: E[r] − β KL as a sum over all completions, differentiated; the estimate over all draws of k of them."""
    tables = Tables()
    totals = tables.token_rewards().sum(dim=1)
    expected = torch.zeros_like(tables.logits)
    for rows in itertools.product(range(7), repeat=k):
        advantages = rloo_advantages(totals[list(rows)][None]).view(-1, 1).expand(-1, 2)
        expected += tables.probabilities[list(rows)].prod() * tables.descent(advantages, list(rows)) / k
    assert_equal(-expected, tables.ascent)
    assert tables.ascent.abs().max() > 0.1


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
def test_the_expected_first_step_of_ppo_is_the_gradient_of_the_objective(gae_lambda):
    """Oracle: as for RLOO. With the true values by any λ; with wrong ones by λ = 1 alone."""
    tables = Tables()
    token_rewards = tables.token_rewards()
    totals, firsts = token_rewards.sum(dim=1), [tokens[0] for tokens in COMPLETIONS]
    true = torch.zeros(7, 2, dtype=torch.float64)
    true[:, 0] = (tables.probabilities * totals).sum()
    for first in (1, 2):  # the value behind it: the mean of what is still to come
        rows = [row for row in range(7) if firsts[row] == first]
        weights = tables.probabilities[rows] / tables.probabilities[rows].sum()
        true[rows, 1] = (weights * token_rewards[rows, 1]).sum()
    wrong = true + torch.stack([torch.ones(7), random(7, 3)[firsts]], dim=1)  # still what is known before a token
    for values, is_exact in ((true, True), (wrong, gae_lambda == 1)):
        advantages = gae(rewards=token_rewards, values=values, mask=MASK_OF_ALL, gae_lambda=gae_lambda)
        error = (tables.descent(advantages) + tables.ascent).abs().max().item()
        assert (error < 1e-12) if is_exact else (error > 1e-3)


def test_the_kl_as_a_loss_in_its_first_step():
    """Oracle: without a KL in the rewards, E[r] and the other direction's KL token by token, differentiated."""
    tables = Tables()
    losses = kl_loss(policy_logps=tables.policy, reference_logps=tables.reference)
    total = (tables.probabilities[:, None] * losses * MASK_OF_ALL).sum()
    (actual,) = torch.autograd.grad(total, tables.logits, retain_graph=True)
    policy, reference = tables.logits.log_softmax(dim=1), random(6, 4, 3).log_softmax(dim=1)
    # How often each row of the table is asked: always the first, then the row of the token drawn, unless it ends.
    visits = torch.cat([torch.ones(1), torch.zeros(1), policy[0, 1:].exp().detach()])
    expected = (visits * (reference.exp() * (reference - policy)).sum(dim=1)).sum()
    assert_equal(actual, torch.autograd.grad(expected, tables.logits)[0])


# ---- what is refused ----

TWO, THREE = torch.zeros(2, 2), torch.zeros(2, 3)
TRUE = torch.ones(2, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (
            kl_shaped_rewards,
            {"rewards": TWO[0], "policy_logps": TWO, "reference_logps": THREE, "mask": TRUE, "beta": 1.0},
            r"reference_logps has shape \(2, 3\), expected \(2, 2\) as policy_logps",
        ),
        (
            kl_shaped_rewards,
            {"rewards": THREE[0], "policy_logps": TWO, "reference_logps": TWO, "mask": TRUE, "beta": 1.0},
            r"rewards has shape \(3,\), expected \(2,\)",
        ),
        (gae, {"rewards": TWO, "values": THREE, "mask": TRUE, "gae_lambda": 1.0}, r"values has shape \(2, 3\)"),
        (gae, {"rewards": TWO, "values": TWO, "mask": TRUE[:1], "gae_lambda": 1.0}, r"mask has shape \(1, 2\)"),
        (gae, {"rewards": TWO, "values": TWO, "mask": TRUE, "gae_lambda": 1.01}, "gae_lambda is 1.01, expected from 0"),
        (gae, {"rewards": TWO, "values": TWO, "mask": TRUE, "gae_lambda": math.nan}, "gae_lambda is nan"),
        (
            clipped_policy_loss,
            {"policy_logps": TWO, "old_logps": THREE, "advantages": TWO, "clip_range": 0.2},
            r"old_logps has shape \(2, 3\), expected \(2, 2\) as policy_logps",
        ),
        (
            clipped_policy_loss,
            {"policy_logps": TWO, "old_logps": TWO, "advantages": TWO, "clip_range": 0.0},
            "clip_range is 0.0, expected > 0",
        ),
        (
            clipped_value_loss,
            {"values": TWO, "old_values": TWO, "returns": TWO[0], "clip_range": 0.2},
            r"returns has shape \(2,\), expected \(2, 2\) as values",
        ),
        (
            clipped_value_loss,
            {"values": TWO, "old_values": TWO, "returns": TWO, "clip_range": math.nan},
            "clip_range is nan, expected > 0",
        ),
        (kl_loss, {"policy_logps": TWO, "reference_logps": TWO[0]}, r"reference_logps has shape \(2,\)"),
        (rloo_advantages, {"rewards": TWO[:, :1]}, r"rewards has shape \(2, 1\), expected \(prompts, k ≥ 2\)"),
        (rloo_advantages, {"rewards": TWO[0]}, r"rewards has shape \(2,\)"),
    ],
)
def test_what_formulas_refuse(function, arguments, message):
    """Oracle: the message, which names the function."""
    with pytest.raises(ValueError, match=f"^{function.__name__}: {message}"):
        function(**arguments)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        *(
            (RLOOSettings, {field: 0}, f"{field} is 0, expected at least 1")
            for field in ("steps", "batch_size", "samples_per_prompt", "epochs", "minibatches", "max_new_tokens")
        ),
        (RLOOSettings, {"batch_size": 30}, r"batch_size is 30, expected a multiple of samples_per_prompt \(4\)"),
        (PPOSettings, {"batch_size": 1}, r"batch_size is 1, .* and at least as many as minibatches \(2\)"),
        *(
            (PPOSettings, {field: value}, f"{field} is {value}, expected a positive number")
            for field in ("lr", "final_lr", "clip", "clip_range", "value_lr", "value_clip_range")
            for value in (0.0, math.nan)
        ),
        (RLOOSettings, {"lr": math.inf}, "lr is inf, final_lr 0.1; expected finite"),
        (RLOOSettings, {"final_lr": 1.5}, "final_lr 1.5; expected finite, and at most 1"),
        (PPOSettings, {"value_lr": math.inf}, "value_lr is inf, expected a finite number"),
        *(
            (PPOSettings, {"gae_lambda": value}, f"gae_lambda is {value}, expected from 0 to 1")
            for value in (-0.1, 1.1)
        ),
        (RLOOSettings, {"kl_in": "rewards"}, "kl_in is 'rewards', expected one of reward, loss"),
        (RLOOSettings, {"target_kl": 0.0}, "target_kl is 0.0, expected a positive number or None"),
        (
            PPOSettings,
            {"batch_size": 1, "minibatches": 1, "normalise_rewards": True},
            "batch_size is 1, expected at least 2: one reward has no standard deviation",
        ),
    ],
)
def test_what_settings_refuse(kind, values, message):
    """Oracle: the message, which names the class."""
    with pytest.raises(ValueError, match=f"^{kind.__name__}: .*{message}"):
        kind(**values)
