"""Expected reward, divergences, win rates, diversity and intervals against hand values, torch, scipy, transformers."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch.distributions import Categorical
from torch.distributions import kl_divergence as torch_kl_divergence

from dapedu.data import Sequences
from dapedu.enumerable import completion_logps, fit_humans, make_world
from dapedu.evaluate import (
    bootstrap_interval,
    distinct_n,
    expected_reward,
    kl_divergence,
    mean_interval,
    measure_policy,
    perplexity,
    sequence_kl,
    win_rate,
)
from dapedu.models import score, tiny_gpt2
from dapedu.sampling import sample
from tests.words import opinionated, word_tokenizer

torch.set_num_threads(1)


def random_policies(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


# ---- expected reward ----


def test_expected_reward_by_hand():
    """Oracle: .5 · 1 + .3 · .9 + .2 · 0 = .77, and a reward that is certain."""
    policies = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.9, 0.0], dtype=torch.float64)
    torch.testing.assert_close(expected_reward(policies, rewards), torch.tensor([0.77, 0.9], dtype=torch.float64))


def test_expected_reward_is_the_mean_over_samples():
    """Oracle: 200,000 draws, within five standard errors; every leading axis is kept."""
    policies = random_policies(2, 3, 4)
    rewards = torch.tensor([0.0, 1.0, -2.0, 5.0], dtype=torch.float64)
    exact = expected_reward(policies, rewards)
    torch.manual_seed(0)
    sampled = rewards[Categorical(policies).sample((200_000,))]
    assert exact.shape == (2, 3)
    assert ((sampled.mean(0) - exact).abs() < 5 * sampled.std(0) / 200_000**0.5).all()


def test_what_never_happens_costs_nothing():
    """Oracle: 0 · (−∞) = 0: `rlhf_optimum` gives an undefended response reward −∞ and probability 0.

    With any probability at all the expectation is −∞; a finite reward keeps its gradient at probability 0.
    """
    rewards = torch.tensor([1.0, 3.0, -math.inf], dtype=torch.float64)
    policies = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.9, 0.0, 0.1]], dtype=torch.float64)
    assert expected_reward(policies, rewards).tolist() == [2, 1, -math.inf]
    policy = policies[1, :2].clone().requires_grad_()
    (slopes,) = torch.autograd.grad(expected_reward(policy, rewards[:2]), policy)
    assert slopes.tolist() == [1, 3]


def test_expected_reward_refuses_another_number_of_responses():
    """Oracle: three probabilities, two rewards."""
    with pytest.raises(ValueError, match="probabilities has 3 responses on its last axis, rewards has 2"):
        expected_reward(random_policies(5, 3), torch.zeros(2))


# ---- KL divergence ----


def test_kl_by_hand():
    """Oracle: (½, ½) against (¼, ¾): ½ log 2 + ½ log ⅔ = ½ log(4/3); the other way ¾ log 3 − log 2."""
    half, quarter = (
        torch.tensor(p, dtype=torch.float64)
        for p in (
            [0.5, 0.5],
            [0.25, 0.75],
        )
    )
    assert kl_divergence(half, quarter).item() == pytest.approx(math.log(4 / 3) / 2, abs=1e-15)
    assert kl_divergence(quarter, half).item() == pytest.approx(0.75 * math.log(3) - math.log(2), abs=1e-15)


def test_kl_is_that_of_torch_distributions():
    """Oracle: torch 2.13's Categorical, on a batch and broadcast against one reference."""
    p, q, reference = random_policies(6, 4), random_policies(6, 4, seed=1), random_policies(4, seed=2)
    expected = torch_kl_divergence(Categorical(p), Categorical(q))
    torch.testing.assert_close(kl_divergence(p, q), expected)
    against_one = torch_kl_divergence(Categorical(p), Categorical(reference.expand(6, 4)))
    torch.testing.assert_close(kl_divergence(p, reference), against_one)


def test_kl_where_a_probability_is_zero():
    """Oracle: 0 log 0 = 0 in the first place, ∞ in the second, by the definition's limits."""
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    never = torch.tensor([0.625, 0.375, 0.0], dtype=torch.float64)  # the reference without c
    assert kl_divergence(never, reference).item() == pytest.approx(-math.log(0.8), abs=1e-15)
    assert kl_divergence(reference, never).item() == math.inf
    assert kl_divergence(never, never).item() == 0


def test_reverse_kl_stays_finite_when_the_rejected_response_dies():
    """Oracle: papers.md, "mistakes": → −log(1 − π_ref(y_l)) = .2231 here; only the forward KL diverges."""
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    left = torch.tensor([1e-2, 1e-4, 1e-8, 1e-300], dtype=torch.float64)[:, None]
    path = torch.cat([(1 - left) * 0.625, (1 - left) * 0.375, left], dim=1)
    reverse, forward = kl_divergence(path, reference), kl_divergence(reference, path)
    assert reverse.diff().min() > 0
    assert reverse[-1].item() == pytest.approx(-math.log(0.8), abs=1e-12)
    assert forward[-1] > 100
    assert forward.diff().min() > 0.5


def test_reverse_kl_is_bounded_by_the_rarest_response():
    """Oracle: KL(π‖π_ref) ≤ max −log π_ref, reached by the policy that is certain of the rarest response."""
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    bound = -math.log(0.2)
    assert kl_divergence(random_policies(500, 3), reference).max() <= bound
    certain = kl_divergence(torch.eye(3, dtype=torch.float64), reference)
    torch.testing.assert_close(certain, -reference.log())
    assert certain.max().item() == pytest.approx(bound, abs=1e-15)


def test_kl_is_positive_and_not_symmetric():
    """Oracle: Gibbs' inequality, zero exactly for equals."""
    p, q = random_policies(200, 4), random_policies(200, 4, seed=1)
    forward, backward = kl_divergence(p, q), kl_divergence(q, p)
    assert (forward > 0).all()
    assert ((forward - backward).abs() > 1e-3).float().mean() > 0.9
    assert (kl_divergence(p, p) == 0).all()


@pytest.mark.parametrize("n", [4, 1])
def test_kl_refuses_another_number_of_responses(n):
    """Oracle: three responses against four, or against one, which would broadcast to a negative KL."""
    with pytest.raises(ValueError, match=f"kl_divergence: p has .* responses on its last axis, q has {n}"):
        kl_divergence(torch.full((3,), 1 / 3), torch.ones(n) / n)


# ---- Student's interval ----


def test_interval_by_hand():
    """Oracle: (1, 2, 3): mean 2, s = 1, and with two degrees of freedom t_p = (2p − 1)/√(2p(1 − p)) = 4.3027."""
    mean, half_width = mean_interval(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert mean.item() == 2
    assert half_width.item() == pytest.approx(0.95 / math.sqrt(2 * 0.975 * 0.025) / math.sqrt(3), abs=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_interval_is_scipys(level, dim):
    """Oracle: scipy.stats.t.interval with its own standard error, along any axis."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    mean, half_width = mean_interval(values, dim=dim, level=level)
    numbers = values.numpy()
    low, high = scipy.stats.t.interval(
        level,
        df=numbers.shape[dim] - 1,
        loc=numbers.mean(axis=dim),
        scale=scipy.stats.sem(numbers, axis=dim),
    )
    torch.testing.assert_close(mean - half_width, torch.from_numpy(low))
    torch.testing.assert_close(mean + half_width, torch.from_numpy(high))


@pytest.mark.parametrize("n", [2, 5, 10])
def test_interval_covers_what_it_promises(n):
    """Oracle: 40,000 simulated experiments. 1.96 in place of Student's t covers .70, .88, .92 of them."""
    generator = torch.Generator().manual_seed(n)
    values = 7 + 3 * torch.randn(n, 40_000, generator=generator, dtype=torch.float64)
    mean, half_width = mean_interval(values)
    coverage = ((mean - 7).abs() < half_width).double().mean().item()
    assert coverage == pytest.approx(0.95, abs=0.005)  # 4.6 standard errors


def test_one_seed_has_no_interval():
    """Oracle: the message says which argument, how many and along which axis."""
    with pytest.raises(ValueError, match="values") as error:
        mean_interval(torch.zeros(4, 1), dim=1)
    assert str(error.value) == "mean_interval: values has 1 along axis 1, expected at least 2 seeds"


@pytest.mark.parametrize("level", [0, 1, 95, -0.5, math.nan])
def test_a_level_is_between_0_and_1(level):
    """Oracle: 95 for .95 gives NaN, 1 gives ∞, a negative one an interval turned inside out."""
    with pytest.raises(ValueError, match="level") as error:
        mean_interval(torch.zeros(5), level=level)
    assert str(error.value) == f"mean_interval: level is {level}, expected between 0 and 1"


# ---- the KL of sampled texts ----


def test_the_mean_log_ratio_estimates_the_kl():
    """Oracle: the enumerable world, where KL and entropy are sums: within four standard errors, single ones negative.

    The policy's completions are sampled as any model's are, as text.
    """
    world = make_world(n_symbols=3, length=3, n_prompts=4)
    reference = tiny_gpt2("tiny", vocab_size=3, n_positions=5)
    fit_humans(reference, world, steps=40)
    policy = tiny_gpt2("tiny", vocab_size=3, n_positions=5, seed=1)
    fit_humans(policy, make_world(n_symbols=3, length=3, n_prompts=4, seed=4), steps=40)
    with torch.no_grad():
        logps, reference_logps = (completion_logps(model, world).double() for model in (policy, reference))
    exact_kl = kl_divergence(logps.exp(), reference_logps.exp()).mean()
    exact_entropy = -(logps.exp() * logps).sum(dim=1).mean()
    tokenizer = word_tokenizer("a b c", special={})
    prompts = tokenizer.batch_decode(world.prompts) * 2_000
    samples = sample(policy, tokenizer, prompts, max_new_tokens=3, batch_size=8_000)
    log_ratios, surprises = sequence_kl(policy, reference, samples.sequences), -score(policy, samples.sequences)
    assert exact_kl > 0.5
    assert log_ratios.min() < 0
    for values, exact in ((log_ratios, exact_kl), (surprises, exact_entropy)):
        assert values.shape == (8_000,)
        assert abs(values.double().mean() - exact) < 4 * values.std() / 8_000**0.5


def test_a_policy_is_nowhere_from_itself():
    """Oracle: 0 for each sequence; the other way round, the sign turns."""
    first, second = opinionated(vocab_size=6), opinionated(vocab_size=6, seed=1)
    sequences = Sequences([[3, 4, 5, 1], [5, 3, 1]], [2, 1])
    assert sequence_kl(first, first, sequences).tolist() == [0, 0]
    assert torch.equal(sequence_kl(first, second, sequences), -sequence_kl(second, first, sequences))


# ---- win rate ----


def test_win_rate_by_hand():
    """Oracle: won, lost, drawn, and infinite rewards, of which equals draw too."""
    inf = math.inf
    wins = win_rate(torch.tensor([2.0, 1, 1, -inf, inf, inf]), torch.tensor([1.0, 2, 1, -inf, inf, 0]))
    assert wins.tolist() == [1, 0, 0.5, 0.5, 0.5, 1]


@pytest.mark.parametrize(
    ("baseline", "message"),
    [([1.0], r"baseline_rewards has shape \(1,\), expected \(2,\)"), ([1.0, math.nan], "a reward is NaN")],
)
def test_what_cannot_win(baseline, message):
    """Oracle: the message says what is wrong."""
    with pytest.raises(ValueError, match=f"^win_rate: {message}"):
        win_rate(torch.zeros(2), torch.tensor(baseline))


# ---- perplexity ----


def test_perplexity_of_a_model_that_knows_nothing():
    """Oracle: the vocabulary's size, whatever the texts."""
    model = tiny_gpt2("tiny", vocab_size=6, n_positions=16)
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
    assert perplexity(model, Sequences([[3, 4, 5, 1], [5, 3]], [2, 1])) == pytest.approx(6, rel=1e-6)


def test_perplexity_is_exp_of_transformers_loss():
    """Oracle: transformers' own loss, one batch, labels of -100 on the prompts and the padding."""
    model = opinionated(vocab_size=6)
    input_ids = torch.tensor([[3, 4, 5, 1], [5, 3, 4, 4], [3, 1, 0, 0]])
    labels = torch.tensor([[-100, -100, 5, 1], [-100, 3, 4, 4], [-100, 1, -100, -100]])
    loss = model(input_ids=input_ids, labels=labels, attention_mask=torch.ones_like(input_ids)).loss
    sequences = Sequences([[3, 4, 5, 1], [5, 3, 4, 4], [3, 1]], [2, 1, 1])
    assert perplexity(model, sequences) == pytest.approx(loss.exp().item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"^perplexity: sequences has no completion tokens"):
        perplexity(model, Sequences([[3, 4]], [2]))


# ---- diversity ----


def test_distinct_n_by_hand():
    """Oracle: counted by eye; n-grams do not cross completions, and spaces are nothing."""
    completions = ["a b a b", "a  b c", "", "d"]
    assert distinct_n(completions, 1) == 4 / 8
    assert distinct_n(completions, 2) == 3 / 5  # ab ba ab, ab bc
    assert distinct_n(completions, 4) == 1
    assert math.isnan(distinct_n(completions, 5))
    assert distinct_n(["the screen is very good ."] * 10) == 3 / 30


def test_distinct_zero_is_refused():
    """Oracle: the message names n."""
    with pytest.raises(ValueError, match=r"^distinct_n: n is 0, expected at least 1"):
        distinct_n(["a"], 0)


# ---- bootstrap interval ----


def skewed(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_bootstrap_is_scipys(level):
    """Oracle: scipy.stats.bootstrap's percentile interval of other draws, on few and skewed values; both of 20,000."""
    values = skewed(15)
    mean, low, high = bootstrap_interval(values, level=level, resamples=20_000)
    scipys = scipy.stats.bootstrap(
        (values.numpy(),), np.mean, confidence_level=level, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    assert mean == pytest.approx(values.mean().item(), abs=1e-12)
    width = high - low
    assert (low, high) == (pytest.approx(scipys.low, abs=0.02 * width), pytest.approx(scipys.high, abs=0.02 * width))


def test_bootstrap_of_unequal_groups_is_scipys():
    """Oracle: scipy.stats.bootstrap of a ratio, groups' sums to groups' sizes, drawn in pairs."""
    sizes = torch.tensor([1, 5, 2, 7, 3, 3, 1, 4, 2, 6, 1, 9])
    prompts = [f"prompt {number}" for number, size in enumerate(sizes.tolist()) for _ in range(size)]
    values = torch.cat([shift + skewed(size, seed=size) for size, shift in zip(sizes.tolist(), range(12), strict=True)])
    order = torch.randperm(44, generator=torch.Generator().manual_seed(1))
    sums = torch.zeros(12, dtype=torch.float64).index_add_(0, torch.arange(12).repeat_interleave(sizes), values)
    mean, low, high = bootstrap_interval(values[order], groups=[prompts[row] for row in order], resamples=20_000)
    scipys = scipy.stats.bootstrap(
        (sums.numpy(), sizes.double().numpy()),
        lambda sums, sizes, axis: sums.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert mean == pytest.approx(values.mean().item(), abs=1e-12)
    width = high - low
    assert (low, high) == (pytest.approx(scipys.low, abs=0.02 * width), pytest.approx(scipys.high, abs=0.02 * width))


def test_copies_of_a_value_tell_nothing_new():
    """Oracle: with their group named, the very interval of the values alone; without, one √5 as wide."""
    values = skewed(40)
    copies, groups = values.repeat_interleave(5), torch.arange(40).repeat_interleave(5)
    alone, grouped, ignored = (
        bootstrap_interval(values),
        bootstrap_interval(copies, groups=groups),
        bootstrap_interval(copies),
    )
    assert grouped == pytest.approx(alone, abs=1e-12)
    assert (alone[2] - alone[1]) / (ignored[2] - ignored[1]) == pytest.approx(5**0.5, rel=0.1)


def test_bootstrap_of_many_values_is_the_normal_interval():
    """Oracle: mean ± 1.96 standard errors; 20,000 draws of 1,000 values, more than are made at once."""
    values = skewed(1_000).log()
    mean, low, high = bootstrap_interval(values, resamples=20_000)
    half_width = scipy.stats.norm.ppf(0.975) * values.std().item() / 1_000**0.5
    assert (mean - low, high - mean) == (pytest.approx(half_width, rel=0.05), pytest.approx(half_width, rel=0.05))


def test_bootstrap_covers_what_it_promises():
    """Oracle: 600 simulated evaluations of 40 prompts, 4 samples each, of which a prompt's own part is shared.

    With 40 groups the percentile interval lacks the factor t/z · √(40/39), and covers .94. Without the groups
    it is narrower by √(1 + 3/2), their design effect, and covers .78.
    """
    generator = torch.Generator().manual_seed(0)
    prompts = torch.arange(40).repeat_interleave(4)
    covered = {"grouped": 0, "ignored": 0}
    for trial in range(600):
        values = torch.randn(40, generator=generator)[prompts] + torch.randn(160, generator=generator)
        for name, groups in (("grouped", prompts), ("ignored", None)):
            _, low, high = bootstrap_interval(values, groups=groups, resamples=400, seed=trial)
            covered[name] += low < 0 < high
    assert covered["grouped"] / 600 == pytest.approx(0.94, abs=0.03)  # 3 standard errors
    assert covered["ignored"] / 600 < 0.82


def test_the_bootstraps_seed_decides():
    """Oracle: equal seeds, equal intervals; whole numbers and truth values have means as well."""
    values = skewed(30)
    assert bootstrap_interval(values) == bootstrap_interval(values, seed=0)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    assert bootstrap_interval(torch.tensor([True, False]))[0] == 0.5


@pytest.mark.parametrize(
    ("values", "arguments", "message"),
    [
        (torch.zeros(2, 2), {}, r"values has shape \(2, 2\), expected \(n,\)"),
        (torch.zeros(1), {}, "1 values, expected at least 2"),
        (torch.zeros(3), {"groups": ["x", "x", "x"]}, "1 groups, expected at least 2"),
        (torch.zeros(3), {"groups": ["x", "y"]}, "groups has 2 entries, expected 3, one a value"),
        (torch.zeros(3), {"level": 95}, "level is 95, expected between 0 and 1"),
        (torch.zeros(3), {"resamples": 0}, "resamples is 0, expected at least 1"),
    ],
)
def test_what_has_no_bootstrap(values, arguments, message):
    """Oracle: the message names argument and value."""
    with pytest.raises(ValueError, match=f"^bootstrap_interval: {message}"):
        bootstrap_interval(values, **arguments)


# ---- a policy's measures ----


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer("a b c")


def words_of(samples):
    return [float(len(completion.split())) for completion in samples.completions]


def test_measures_are_those_of_the_samples(tokenizer):
    """Oracle: each row again, by hand from the same samples, some cut off; the first reward decides who wins."""
    policy, reference = opinionated(vocab_size=6), opinionated(vocab_size=6, seed=1)
    prompts = ["a b", "c", "b b a", "c a"] * 10
    drawn = {"max_new_tokens": 8, "seed": 3}
    baseline = sample(reference, tokenizer, prompts, **drawn)
    rewards = {"words": words_of, "a": lambda samples: torch.tensor(["a" in c for c in samples.completions])}
    samples, values = measure_policy(
        policy, tokenizer, prompts, rewards=rewards, reference=reference, baseline=baseline, **drawn
    )
    assert samples == sample(policy, tokenizer, prompts, **drawn)
    mine, theirs = words_of(samples), words_of(baseline)
    ends = [ids[-1] == 1 for ids in samples.sequences.input_ids]
    own = score(policy, samples.sequences).tolist()
    its = score(reference, samples.sequences).tolist()
    expected = {
        "words": mine,
        "a": [float("a" in completion) for completion in samples.completions],
        "win rate": [(1 + np.sign(my - their)) / 2 for my, their in zip(mine, theirs, strict=True)],
        "kl": [pytest.approx(p - q, abs=1e-5) for p, q in zip(own, its, strict=True)],
        "entropy": [-p for p in own],
        "length": [words + end for words, end in zip(mine, ends, strict=True)],
        "finished": ends,
    }
    assert 0 < sum(ends) < 40
    assert list(values) == list(expected)
    for name, value in values.items():
        assert value.dtype == torch.float64
        assert value.tolist() == expected[name], name


@pytest.mark.parametrize("settings", [{"temperature": 0.5}, {"top_k": 2}])
def test_samples_that_are_not_the_policys_own_have_no_kl(settings, tokenizer):
    """Oracle: the rows that are left, without a win rate as there is no baseline; the samples are of those settings."""
    policy = opinionated(vocab_size=6)
    arguments = {"rewards": {"words": words_of}, "reference": policy, "max_new_tokens": 3}
    samples, values = measure_policy(policy, tokenizer, ["a", "b"], **arguments, **settings)
    assert list(values) == ["words", "length", "finished"]
    assert samples == sample(policy, tokenizer, ["a", "b"], max_new_tokens=3, **settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ["b", "a"]}, "baseline has other prompts"),
        ({"rewards": {"bad": lambda samples: [1.0]}}, r"reward bad gives shape \(1,\), expected \(2,\)"),
    ],
)
def test_what_cannot_be_measured(arguments, message, tokenizer):
    """Oracle: the message names what does not fit."""
    policy = opinionated(vocab_size=6)
    baseline = sample(policy, tokenizer, ["a", "b"], max_new_tokens=3)
    usual = {"prompts": ["a", "b"], "rewards": {"words": words_of}, "baseline": baseline, "max_new_tokens": 3}
    with pytest.raises(ValueError, match=f"^measure_policy: {message}"):
        measure_policy(policy, tokenizer, **(usual | arguments))
