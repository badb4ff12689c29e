"""The losses against what public code computes: documented deviations, and TRL 1.16 itself."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dapedu.logps import mean_logps, sequence_logps
from dapedu.losses import (
    click_loss,
    dpo_loss,
    ipo_loss,
    robust_dpo_loss,
    rrhf_loss,
    slic_hf_loss,
    spin_loss,
)
from tests.loss_cases import (
    CASES,
    draw,
    margin_arguments,
    rows,
    swap,
)

torch.set_num_threads(1)

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
    as_seen = (1 - epsilon) * robust_dpo_loss(**batch, beta=0.4, flip=epsilon)
    as_flipped = epsilon * robust_dpo_loss(**swap(batch), beta=0.4, flip=epsilon)
    torch.testing.assert_close(as_seen + as_flipped, dpo_loss(**batch, beta=0.4))


def test_robust_dpo_is_unbounded_below_on_a_pair_seen_one_way():
    """Oracle: → −ε βh/(1 − 2ε) for h → ∞, while DPO and cDPO stay above 0."""
    epsilon, beta = 0.2, 0.5
    arguments = margin_arguments(torch.tensor([1e3, 1e6], dtype=torch.float64))
    values = robust_dpo_loss(**arguments, beta=beta, flip=epsilon)
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


def test_trl_robust_is_robust_dpo(trl):
    """Oracle: TRL 1.16, loss_type "robust" (its "sigmoid" ignores label_smoothing, so cDPO has no peer)."""
    assert_peers(trl, "robust", robust_dpo_loss(**trl.score(sequence_logps), beta=TRL_BETA, flip=TRL_EPSILON))
