"""The enumerable world: tables against reading each completion, expectations against formulas of the bandit."""

import itertools

import pytest
import torch

from dapedu.bandit import rlhf_optimum
from dapedu.enumerable import completion_logps, expected_loss, fit_humans, make_world, minimise, pair_weights
from dapedu.evaluate import kl_divergence, total_variation
from dapedu.logps import sequence_logps
from dapedu.losses import dpo_loss, ipo_loss
from dapedu.models import SIZES, tiny_gpt2

SMALL = {"n_symbols": 3, "length": 3, "n_prompts": 4}  # 27 completions


@pytest.fixture(scope="module")
def world():
    return make_world(**SMALL)


@pytest.fixture(scope="module")
def reference(world):
    model = tiny_gpt2("enumerable", vocab_size=world.n_symbols, n_positions=world.n_positions)
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


def test_fine_tuning_learns_how_people_write(world, reference):
    """Oracle: the KL, which starts above a tenth and falls a hundredfold."""
    fresh = tiny_gpt2("enumerable", vocab_size=3, n_positions=5)
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
    optimum = torch.stack(
        [
            rlhf_optimum(r, 1.0, reference=p.double() / p.double().sum())
            for r, p in zip(world.rewards, reference_logps.exp(), strict=True)
        ]
    )
    wins = torch.sigmoid(world.rewards[:, :, None] - world.rewards[:, None, :])
    weights = pair_weights(reference_logps, wins)
    policy = tiny_gpt2("enumerable", vocab_size=3, n_positions=5)
    policy.load_state_dict(reference.state_dict())
    minimise(
        policy,
        lambda logps: expected_loss(logps, reference_logps, weights, dpo_loss, beta=1.0),
        world,
        steps=600,
        lr=4e-3,
    )
    with torch.no_grad():
        reached = completion_logps(policy, world).exp().double()
    assert (total_variation(optimum, reference_logps.exp()) > 0.05).all()
    assert (total_variation(optimum, reached) < 0.02).all()


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
        completion_logps(tiny_gpt2("enumerable", vocab_size=7, n_positions=5), world)


def test_a_model_is_its_seed_and_leaves_other_random_numbers_alone():
    """Oracle: equal weights for equal seeds; the caller's generator goes on as if nothing had happened."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, third = (tiny_gpt2("enumerable", vocab_size=3, n_positions=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.transformer.wte.weight, third.transformer.wte.weight)


def test_an_unknown_size_is_named():
    """Oracle: the message lists the sizes there are."""
    with pytest.raises(ValueError, match=f"^tiny_gpt2: no size 'huge'; there are {', '.join(SIZES)}"):
        tiny_gpt2("huge", vocab_size=3, n_positions=5)
