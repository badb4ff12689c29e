"""The loop's losses, steps and log-ratios against one written by hand in float64, and against TRL."""

import copy
import math
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dapedu.data import encode
from dapedu.losses import (
    click_loss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    robust_dpo_loss,
    rrhf_loss,
    simpo_loss,
    slic_hf_loss,
    spin_loss,
)
from dapedu.models import add_lora, load_model, save_model, score
from dapedu.sampling import sample
from dapedu.train import (
    METHODS,
    RunError,
    Settings,
    batches_of_epoch,
    scorer,
)
from dapedu.train.monitor import estimate_kl, reference_of
from tests.train_cases import FIRST, RECORDS, WORDS, assert_same_weights, go, records_of, weights
from tests.words import opinionated, word_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(WORDS)


@pytest.fixture
def model():
    return opinionated(vocab_size=9)


# ---- oracles ----


def slow_logps(model, tokenizer, prompt: str, completion: str) -> Tensor:
    """One text alone, transformers' logits, a softmax over each row: log-probabilities of its tokens and its end."""
    head, tail = tokenizer(prompt)["input_ids"], [*tokenizer(completion)["input_ids"], 1]
    logps = model(input_ids=torch.tensor([head + tail])).logits[0].log_softmax(dim=-1)
    return torch.stack([logps[len(head) + place - 1, token] for place, token in enumerate(tail)])


def four(policy, reference) -> dict[str, Tensor]:
    return {
        "policy_chosen_logps": policy[0],
        "policy_rejected_logps": policy[1],
        "reference_chosen_logps": reference[0],
        "reference_rejected_logps": reference[1],
    }


KTO = {"reference_point": 0.0, "beta": 0.3, "undesirable_weight": 1.5}


def means(policy, lengths) -> dict[str, Tensor]:
    return {
        "policy_chosen_mean_logps": policy[0] / lengths[0],
        "policy_rejected_mean_logps": policy[1] / lengths[1],
    }


# (sums under the policy, sums under the reference, lengths, rewards), each a list over columns → losses of the batch
LOSSES = {
    # per token of all the data
    "sft": lambda p, r, n, w: -p[0] * len(FIRST) / sum(len(text.split()) + 1 for text in FIRST),
    "dpo": lambda p, r, n, w: dpo_loss(**four(p, r), beta=0.3),
    "ipo": lambda p, r, n, w: ipo_loss(**four(p, r), tau=0.3),
    "ipo-mean": lambda p, r, n, w: ipo_loss(**four([p[0] / n[0], p[1] / n[1]], [r[0] / n[0], r[1] / n[1]]), tau=0.3),
    "slic-hf": lambda p, r, n, w: slic_hf_loss(
        policy_chosen_logps=p[0], policy_rejected_logps=p[1], policy_target_logps=p[2], delta=2.0, sft_weight=0.2
    ),
    "slic-hf-mean": lambda p, r, n, w: slic_hf_loss(
        policy_chosen_logps=p[0] / n[0],
        policy_rejected_logps=p[1] / n[1],
        policy_target_logps=p[2] / n[2],
        delta=0.5,
        sft_weight=0.2,
    ),
    "rrhf": lambda p, r, n, w: rrhf_loss(
        candidate_logps=torch.stack(p, 1), candidate_lengths=torch.stack(n, 1), rewards=w, sft_weight=0.5
    ),
    "rrhf-sum": lambda p, r, n, w: rrhf_loss(
        candidate_logps=torch.stack(p, 1), candidate_lengths=torch.ones_like(torch.stack(n, 1)), rewards=w, sft_weight=2
    ),
    "click": lambda p, r, n, w: click_loss(
        policy_chosen_logps=p[0],
        policy_rejected_logps=p[1],
        target_mean_logps=p[2] / n[2],
        delta=3.0,
        contrast_weight=0.4,
    ),
    "spin": lambda p, r, n, w: spin_loss(**four(p, r), beta=0.2),
    "kto": lambda p, r, n, w: (
        (
            kto_loss(policy_logps=p[0], reference_logps=r[0], is_desirable=torch.ones(len(p[0])), **KTO)
            + kto_loss(policy_logps=p[1], reference_logps=r[1], is_desirable=torch.zeros(len(p[0])), **KTO)
        )
        / 2
    ),
    "orpo": lambda p, r, n, w: orpo_loss(**means(p, n), contrast_weight=0.4),
    "simpo": lambda p, r, n, w: simpo_loss(**means(p, n), beta=2.0, gamma=0.5),
    "robust-dpo": lambda p, r, n, w: robust_dpo_loss(**four(p, r), beta=0.3, flip=0.2),
}
STRENGTHS = {
    "sft": {},
    "dpo": {"beta": 0.3},
    "ipo": {"tau": 0.3},
    "ipo-mean": {"tau": 0.3},
    "slic-hf": {"delta": 2.0, "sft_weight": 0.2},
    "slic-hf-mean": {"delta": 0.5, "sft_weight": 0.2},
    "rrhf": {"sft_weight": 0.5},
    "rrhf-sum": {"sft_weight": 2.0},
    "click": {"delta": 3.0, "contrast_weight": 0.4},
    "spin": {"beta": 0.2},
    "kto": {"beta": 0.3, "undesirable_weight": 1.5},
    "orpo": {"contrast_weight": 0.4},
    "simpo": {"beta": 2.0, "gamma": 0.5},
    "robust-dpo": {"beta": 0.3, "flip": 0.2},
}


def columns_of(method: str, record: dict) -> list[str]:
    if METHODS[method].records == "rankings":
        return record["completions"]
    fields = ["completion"] if method == "sft" else ["chosen", "rejected"]
    return [record[field] for field in fields + ["target"] * METHODS[method].has_target]


def by_hand(model, tokenizer, method: str, settings: Settings) -> tuple[list[float], torch.nn.Module]:
    """The whole of training again in float64: text by text, AdamW, clipping and schedule written out."""
    model = copy.deepcopy(model).double()
    start, records = copy.deepcopy(model), records_of(method)
    parameters = list(model.parameters())
    first, second = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    batches = batches_of_epoch(len(records), batch_size=settings.batch_size, seed=settings.seed, epoch=0)
    losses = []
    for step in range(1, settings.steps + 1):
        batch = [records[row] for row in batches[step - 1]]
        columns = list(zip(*(columns_of(method, record) for record in batch), strict=True))
        policy, reference = (
            [
                torch.stack(
                    [
                        slow_logps(who, tokenizer, record["prompt"], text).sum()
                        for record, text in zip(batch, column, strict=True)
                    ]
                )
                for column in columns
            ]
            for who in (model, start)
        )
        lengths = [torch.tensor([len(text.split()) + 1 for text in column]) for column in columns]
        rewards = (
            torch.tensor([record["rewards"] for record in batch]) if METHODS[method].records == "rankings" else None
        )
        loss = LOSSES[method](policy, [column.detach() for column in reference], lengths, rewards).mean()
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        rate = settings.lr * min(1, step / max(1, settings.warmup)) * (1 - 0.9 * (step - 1) / settings.steps)
        with torch.no_grad():
            for parameter, gradient, m, v in zip(parameters, gradients, first, second, strict=True):
                gradient = gradient * min(1, settings.clip / norm)
                m.mul_(0.9).add_(0.1 * gradient)
                v.mul_(0.999).add_(0.001 * gradient**2)
                parameter -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    return losses, model


# ---- the loss and the step ----


@pytest.mark.parametrize("method", METHODS)
def test_losses_and_steps_by_hand(method, model, tokenizer):
    """Oracle: `by_hand`. At the first step policy and reference are the same, at the third they differ."""
    settings = Settings(steps=3, batch_size=8, lr=1e-3, warmup=2, log_every=1, clip=0.5)
    expected, trained = by_hand(model, tokenizer, method, settings)
    log = go(model, tokenizer, method, strengths=STRENGTHS[method], steps=3, batch_size=8, lr=1e-3, warmup=2, clip=0.5)
    assert [row["loss"] for row in log] == pytest.approx(expected, rel=1e-4)
    assert len(set(expected)) == 3
    assert_same_weights(model, trained, atol=2e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_five_steps_of_trl(model, tokenizer, tmp_path, monkeypatch):
    """Oracle: TRL 1.16's DPOTrainer, every batch the same six pairs, its AdamW with our schedule."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trl = pytest.importorskip("trl", minversion="1.16")
    datasets = pytest.importorskip("datasets")
    records = [{key: r[key] for key in ("prompt", "chosen", "rejected")} for r in RECORDS["preferences"][:6]]
    for record in records:  # TRL encodes both together, so that the space belongs to the completion
        record.update(chosen=f" {record['chosen']}", rejected=f" {record['rejected']}")
    peer, start = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - 0.9 * done / 5)
    config = trl.DPOConfig(
        output_dir=str(tmp_path),
        beta=0.3,
        max_steps=5,
        per_device_train_batch_size=6,
        max_grad_norm=1.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trl.DPOTrainer(
        model=peer,
        ref_model=start,
        args=config,
        train_dataset=datasets.Dataset.from_list(records),
        processing_class=tokenizer,
        optimizers=(optimizer, schedule),
    ).train()
    go(model, tokenizer, "dpo", records=records, strengths={"beta": 0.3}, steps=5, batch_size=6, lr=1e-3)
    moved, peers, before = weights(model), weights(peer), weights(start)
    for name, value in before.items():
        # Adam divides by the gradient's own size: where that is rounding, single numbers tell the processor apart.
        assert (moved[name] - peers[name]).norm() < 1e-4 * (peers[name] - value).norm(), name


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_cut_into_parts_is_the_same_batch(method, model, tokenizer):
    """Oracle: the batch in one part; 10 examples in four parts of 3, 3, 3 and 1."""
    other = copy.deepcopy(model)
    whole = go(model, tokenizer, method, steps=4, batch_size=10, lr=1e-3, parts=1)
    parts = go(other, tokenizer, method, steps=4, batch_size=10, lr=1e-3, parts=4)
    for one, two in zip(whole, parts, strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"tokens_s"}:
            assert one[name] == pytest.approx(two[name], rel=1e-4, abs=1e-5), name
    assert_same_weights(other, model, atol=2e-5)


def test_the_learning_rate_by_hand(model, tokenizer):
    """Oracle: a quarter, a half, three quarters, all of a line from 1 to a tenth over ten steps."""
    log = go(model, tokenizer, "sft", steps=10, batch_size=4, warmup=4, lr=1e-3)
    expected = [0.25 * 1, 0.5 * 0.91, 0.75 * 0.82, 0.73, 0.64, 0.55, 0.46, 0.37, 0.28, 0.19]
    assert [row["lr"] * 1e3 for row in log] == pytest.approx(expected)


# ---- the reference ----


def test_the_reference_is_asked_once(model, tokenizer, monkeypatch):
    """Oracle: texts that pass through the model, counted: with gradient those of the batches, without one all once."""
    seen = {True: 0, False: 0}
    read = scorer.model_logps

    def count(model, batch) -> torch.Tensor:
        logps = read(model, batch)
        seen[torch.is_grad_enabled()] += len(logps)
        return logps

    monkeypatch.setattr(scorer, "model_logps", count)
    go(model, tokenizer, "dpo", steps=20, batch_size=8)
    assert seen == {True: 20 * 8 * 2, False: 40 * 2}
    go(model, tokenizer, "click", steps=5, batch_size=8)  # has no reference
    assert seen == {True: 20 * 8 * 2 + 5 * 8 * 3, False: 40 * 2}


def test_log_ratios_are_to_the_starting_model(model, tokenizer):
    """Oracle: `dapedu.models.score` of held-out pairs under the model as it came and as it left."""
    start, held_out = copy.deepcopy(model), RECORDS["preferences"][:7]
    log = go(model, tokenizer, "dpo", steps=12, batch_size=8, lr=1e-3, held_out=held_out, evaluate_every=6)
    evaluated = [row for row in log if "held_out_loss" in row]
    assert [row["step"] for row in evaluated] == [6, 12]
    ratios = {}
    for field in ("chosen", "rejected"):
        sequences = encode([r["prompt"] for r in held_out], [r[field] for r in held_out], tokenizer)
        ratios[field] = score(model, sequences) - score(start, sequences)
        assert evaluated[-1][f"held_out_{field}"] == pytest.approx(ratios[field].mean().item(), abs=1e-4)
    margin = ratios["chosen"] - ratios["rejected"]
    assert evaluated[-1]["held_out_margin"] == pytest.approx(margin.mean().item(), abs=1e-4)
    assert evaluated[-1]["held_out_accuracy"] == pytest.approx((margin > 0).float().mean().item())
    assert abs(margin.mean().item()) > 0.1
    assert (log[0]["margin"], log[0]["chosen"]) == pytest.approx((0, 0), abs=1e-5)


def test_the_kl_is_that_of_samples(model, tokenizer):
    """Oracle: `score` of the same samples under both; as long as the model can read behind the longest prompt that
    takes no more than half of its 16 positions."""
    start = copy.deepcopy(model)
    held_out = [{"prompt": "a b c d e f a b", "chosen": "a", "rejected": "b"}, *RECORDS["preferences"][:3]]
    long = {"prompt": "a b c d e f a b c", "chosen": "a", "rejected": "b"}
    log = go(model, tokenizer, "dpo", steps=6, batch_size=8, lr=1e-3, held_out=[long, *held_out], kl_samples=50)
    prompts = ([record["prompt"] for record in held_out] * 13)[:50]
    samples = sample(model, tokenizer, prompts, max_new_tokens=16 - 8, seed=0, every_token=True)
    kl = (score(model, samples.sequences) - score(start, samples.sequences)).mean().item()
    assert log[-1]["kl"] == pytest.approx(kl, abs=1e-5)
    assert ["kl" in row for row in log] == [False] * 5 + [True]
    assert kl > 0.05
    same = estimate_kl(start, reference_of(start, at_once=8), tokenizer, prompts, 0, at_once=8)
    assert same == pytest.approx(0, abs=1e-5)


def test_the_kl_counts_tokens_that_are_no_text(model, tokenizer):
    """Oracle: the sum over the one token that is drawn, of all nine, two of which are special and never text."""
    start = copy.deepcopy(model)
    prompts = ["a"] * 4000
    ids = tokenizer("a", add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        state = model.transformer(ids).last_hidden_state[0, -1]
        model.transformer.wte.weight[2] += 2 * state / state.square().sum()  # <unk>'s logit rises by 2
    with torch.no_grad():
        policy, reference = (one(ids).logits[0, -1].log_softmax(-1).double() for one in (model, start))
    exact = (policy.exp() * (policy - reference)).sum().item()
    one_token = partial(sample, max_new_tokens=1, every_token=True)
    drawn = one_token(model, tokenizer, prompts, seed=0).sequences
    log_ratios = score(model, drawn) - score(start, drawn)
    assert log_ratios.mean().item() == pytest.approx(exact, abs=4 * log_ratios.std().item() / 4000**0.5)
    assert 2 in {ids[-1] for ids in drawn.input_ids}
    assert exact > 0.1


def test_adapters_that_were_trained_before_belong_to_the_reference(model, tokenizer):
    """Oracle: `score` of the model before the second run; fresh adapters are switched off instead of copied."""
    policy = add_lora(model, rank=2)
    sequences = encode(["a"] * 3, ["b", "c d", "e"], tokenizer)
    fresh = reference_of(policy, at_once=8)
    before = score(policy, sequences)
    go(policy, tokenizer, "dpo", steps=5, batch_size=8, lr=1e-2)
    assert (score(policy, sequences) - before).abs().max() > 1e-2
    torch.testing.assert_close(fresh(sequences), before, rtol=0, atol=1e-5)
    between = score(policy, sequences)
    trained = reference_of(policy, at_once=8)
    go(policy, tokenizer, "dpo", steps=5, batch_size=8, lr=1e-2)
    torch.testing.assert_close(trained(sequences), between, rtol=0, atol=1e-5)


def test_a_run_goes_on_with_its_own_adapters_only(model, tokenizer, tmp_path):
    """Oracle: the message names what differs; the weights of both are the same, as B is zero."""
    save_model(model, tokenizer, tmp_path / "base", card="")
    for alpha in (4.0, 8.0):
        policy = add_lora(load_model(tmp_path / "base")[0], rank=2, alpha=alpha)
        if alpha == 4:
            go(policy, tokenizer, "dpo", steps=2, batch_size=8, output=tmp_path / "run")
            continue
        with pytest.raises(RunError, match=r"alpha was 4.0, now 8.0"):
            go(policy, tokenizer, "dpo", steps=2, batch_size=8, output=tmp_path / "run", resume=True)
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*.safetensors")
    assert {name.split(".")[0] for name in load_file(checkpoint) if "lora_" not in name} == {"optimizer", "random"}
    assert "base_model: " in (tmp_path / "run" / "model" / "README.md").read_text()
