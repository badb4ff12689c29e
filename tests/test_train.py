"""What training teaches, logs, refuses and leaves alone."""

import copy
import json
import math

import pytest
import torch

from dapedu import train
from dapedu.data import encode
from dapedu.models import load_model, score
from dapedu.train import (
    METHODS,
    DivergedError,
    Method,
    Settings,
    plan,
    train_preference,
)
from tests.train_cases import PROMPTS, RECORDS, WORDS, assert_same_weights, go, records_of
from tests.words import opinionated, word_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(WORDS)


@pytest.fixture
def model():
    return opinionated(vocab_size=9)


# ---- it learns ----

LESSON = {
    "demonstrations": [{"prompt": p, "completion": f"{p.split()[0]} b"} for p in PROMPTS],
    "preferences": [{"prompt": p, "chosen": f"{p.split()[0]} b", "rejected": "c d e"} for p in PROMPTS],
    "rankings": [
        {"prompt": p, "completions": ["c d e", "f", f"{p.split()[0]} b"], "rewards": [0, 1, 2]} for p in PROMPTS
    ],
}


@pytest.mark.parametrize("method", METHODS)
def test_training_lowers_the_held_out_loss(method, model, tokenizer):
    """Oracle: prefer the prompt's first word and a b; ten prompts are held out."""
    lesson = LESSON[METHODS[method].records]
    options = {"batch_size": 16, "lr": 2e-3, "warmup": 5, "log_every": 100, "evaluate_every": 1}
    held_out = {"records": lesson[10:], "held_out": lesson[:10]}
    before = go(copy.deepcopy(model), tokenizer, method, **held_out, **options | {"steps": 1, "lr": 1e-12})
    after = go(model, tokenizer, method, **held_out, **options | {"steps": 40, "evaluate_every": 40})
    assert after[-1]["held_out_loss"] < 0.7 * before[-1]["held_out_loss"]
    if METHODS[method].records == "preferences":
        assert after[-1]["held_out_accuracy"] == 1.0


# ---- what it leaves alone ----


def test_dropout_stays_off(model, tokenizer):
    """Oracle: the same weights in a model without any, to the last bit."""
    from transformers import GPT2Config, GPT2LMHeadModel

    rates = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    wet = GPT2LMHeadModel(GPT2Config(**model.config.to_dict() | rates)).train()
    wet.load_state_dict(model.state_dict())
    options = {"steps": 3, "batch_size": 8, "held_out": RECORDS["preferences"][:5], "evaluate_every": 1}
    logs = [go(policy, tokenizer, "dpo", kl_samples=8, **options) for policy in (wet, model)]
    for one, two in zip(*logs, strict=True):
        assert one | {"tokens_s": 0} == two | {"tokens_s": 0}
    for one, two in zip(wet.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_another_reference_is_what_the_log_ratios_are_to_and_stays_as_it_is(model, tokenizer):
    """Oracle: the first log-ratios are differences of two models' log-probabilities; without one they are 0."""
    other = opinionated(vocab_size=9, seed=7)
    before = copy.deepcopy(other)
    records = RECORDS["preferences"][:8]
    asked = [record["prompt"] for record in records]
    texts = [encode(asked, [record[kind] for record in records], tokenizer) for kind in ("chosen", "rejected")]
    chosen, rejected = (float((score(model, text) - score(other, text)).mean()) for text in texts)
    options = {"records": records, "held_out": records, "batch_size": 8, "kl_samples": 64, "evaluate_every": 1}
    row = go(copy.deepcopy(model), tokenizer, "dpo", reference=other, steps=1, lr=1e-12, **options)[0]
    assert (row["chosen"], row["rejected"]) == pytest.approx((chosen, rejected), abs=1e-4)
    assert row["kl"] > 0.01  # to the other one
    own = go(copy.deepcopy(model), tokenizer, "dpo", steps=1, lr=1e-12, **options)[0]
    assert own["kl"] == pytest.approx(0, abs=1e-6)
    assert_same_weights(other, before, atol=0)
    logs = [
        go(copy.deepcopy(model), tokenizer, "dpo", reference=reference, steps=3, **options)
        for reference in (None, model)
    ]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]


def test_metrics_of_the_caller_are_logged_where_it_is_evaluated(model, tokenizer, tmp_path):
    """Oracle: a function that counts its calls and sees the model as it is at that step."""
    seen = []

    def metric(policy) -> float:
        seen.append(policy.transformer.wte.weight.detach().clone())
        return float(len(seen))

    options = {"steps": 5, "batch_size": 8, "evaluate_every": 2, "output": tmp_path / "run"}
    log = go(model, tokenizer, "dpo", metrics={"calls, all": metric}, **options)
    assert {row["step"]: row["calls, all"] for row in log if "calls, all" in row} == {2: 1, 4: 2, 5: 3}
    torch.testing.assert_close(seen[-1], model.transformer.wte.weight.detach(), rtol=0, atol=0)
    assert (seen[0] - seen[1]).abs().max() > 0
    header = (tmp_path / "run" / "log.csv").read_text(encoding="utf8").splitlines()[0]
    assert header.endswith(',kl,"calls, all"')
    assert go(opinionated(vocab_size=9), tokenizer, "dpo", metrics={"calls, all": metric}, resume=True, **options)
    with pytest.raises(train.RunError, match="metrics was"):  # the table has no column for it
        go(opinionated(vocab_size=9), tokenizer, "dpo", metrics={"other": metric}, resume=True, **options)


def test_the_model_comes_back_where_it_was(model, tokenizer, monkeypatch):
    """Oracle: where it was sent last, after an end and after a failure."""
    sent, to = [], type(model).to
    monkeypatch.setattr(type(model), "to", lambda self, *places: sent.append(places) or to(self, *places))
    go(model, tokenizer, "dpo", steps=1)
    assert sent.pop() == (torch.device("cpu"),)
    sent.clear()
    with pytest.raises(ZeroDivisionError):
        go(model, tokenizer, "dpo", steps=1, metrics={"bad": lambda policy: 1 / 0})
    assert sent.pop() == (torch.device("cpu"),)


def test_weights_of_half_precision_are_trained_in_float32(model, tokenizer):
    """Oracle: bfloat16 has 8 bits: a step of 1e-6 would be lost in rounding."""
    model.bfloat16()
    before = model.transformer.wte.weight.detach().float().clone()
    go(model, tokenizer, "sft", steps=1, batch_size=8, lr=1e-6)
    change = (model.transformer.wte.weight.detach() - before).abs()[3:]  # of the words, all of which are read
    assert change.dtype == torch.float32
    assert ((change > 0.5e-6) & (change < 2e-6)).float().mean() > 0.9


def test_a_loss_that_is_not_finite_stops_before_it_does_harm(model, tokenizer, tmp_path, monkeypatch):
    """Oracle: the checkpoint of the step before, bit by bit; the advice names the settings as they are."""
    from safetensors.torch import load_file

    calls, dpo = [], METHODS["dpo"]

    def breaks(scores, **strengths):
        calls.append(1)
        losses = dpo.loss(scores, **strengths)
        return losses + math.inf if len(calls) == 5 else losses  # the first call only asks about the strengths

    monkeypatch.setitem(METHODS, "dpo", Method(breaks, *dpo[1:]))
    with pytest.raises(DivergedError, match="step 4: the loss is inf") as error:
        go(model, tokenizer, "dpo", steps=9, batch_size=8, parts=1, lr=2e-3, checkpoint_every=1, output=tmp_path)
    for part in (str(tmp_path), "smaller learning rate (now 0.002)", "longer warm-up (now 0 steps)", "weaker"):
        assert part in str(error.value)
    last = max(tmp_path.glob("checkpoint-*.safetensors"))
    assert last.name == "checkpoint-00000003.safetensors"
    kept = load_file(last)
    for name, value in model.named_parameters():
        torch.testing.assert_close(kept[f"model.{name}"], value.detach(), rtol=0, atol=0)
    assert not (tmp_path / "model").exists()


def test_a_gradient_that_is_not_finite_stops_too(model, tokenizer, monkeypatch):
    """Oracle: √x has a slope of ∞ at 0, where its value is 0."""
    dpo = METHODS["dpo"]
    root = Method(lambda scores, beta: (scores.policy_logps - scores.policy_logps.detach()).sum(1).sqrt(), *dpo[1:])
    monkeypatch.setitem(METHODS, "dpo", root)
    before = copy.deepcopy(model)
    with pytest.raises(DivergedError, match=r"the loss is 0\.0 and the gradient's norm"):
        go(model, tokenizer, "dpo", steps=2, batch_size=8)
    assert_same_weights(model, before, atol=0)


# ---- what it refuses, before anything is written ----


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("ppo", {"records": [{}]}, "no method 'ppo'; there are sft, dpo, ipo"),
        ("dpo", {"strengths": {"tau": 1.0}}, "dpo has no strength tau; it has beta"),
        ("sft", {"strengths": {"beta": 1.0}}, "sft has no strength beta; it has none"),
        ("dpo", {"strengths": {"beta": -1.0}}, "dpo_loss: beta is -1.0"),
        ("rrhf", {"strengths": {"sft_weight": -1.0}}, "rrhf_loss: sft_weight is -1.0"),
        ("dpo", {"records": RECORDS["demonstrations"]}, "records[0]: no `chosen`; preferences need it"),
        ("rrhf", {"records": [RECORDS["rankings"][0], {"prompt": "a"}]}, "records[1]: no `completions`"),
        (
            "slic-hf",
            {"records": [RECORDS["preferences"][0], LESSON["preferences"][0]]},
            "records[1]: 2 texts, the first record has 3; give all as many",
        ),
        ("dpo", {"held_out": RECORDS["rankings"]}, "records[0]: no `chosen`"),
        (
            "sft",
            {"records": [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b " * 15}]},
            "records[1]: 17 tokens, prompt and end included, are more than the 16 that the model can read",
        ),
        ("sft", {"held_out": [{"prompt": "a " * 20, "completion": "b"}]}, "records[0]: 22 tokens"),
        ("sft", {"records": [{"prompt": "a", "completion": "z"}]}, "the tokenizer gives token 9, but the model knows"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(method, options, message, model, tmp_path):
    """Oracle: the message, an empty folder, and the weights."""
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"\w") as error:
        train_preference(
            model,
            word_tokenizer(f"{WORDS} z"),
            options.pop("records", None) or records_of(method),
            method=method,
            output=tmp_path / "run",
            progress=False,
            **options,
        )
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())
    assert_same_weights(model, before, atol=0)


def test_there_must_be_records(model, tokenizer):
    with pytest.raises(ValueError, match="there are no records"):
        train_preference(model, tokenizer, [], method="dpo")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "Settings: steps is 0, expected at least 1"),
        ({"batch_size": -1}, "Settings: batch_size is -1, expected at least 1"),
        ({"warmup": -1}, "Settings: warmup is -1, expected at least 0"),
        ({"lr": 0.0}, "Settings: lr is 0.0, expected a positive number"),
        ({"lr": math.nan}, "Settings: lr is nan, expected a positive number"),
        ({"clip": math.inf}, "Settings: clip is inf, expected a positive number"),
        ({"parts": 0}, "Settings: parts is 0, expected at least 1"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(ValueError, match="Settings") as error:
        Settings(**change)
    assert str(error.value) == message


# ---- what is left on disk, and what is foreseen ----


def test_the_models_folder_and_its_card(model, tokenizer, tmp_path):
    """Oracle: the trained weights read back, and numbers of the log in the card."""
    log = go(model, tokenizer, "dpo", steps=3, batch_size=8, output=tmp_path, strengths={"beta": 0.25})
    loaded, _ = load_model(tmp_path / "model")
    assert_same_weights(loaded, model, atol=0)
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf8")
    for part in ("trained by dpo", "40 examples", "beta 0.25", "steps 3", f"loss {log[-1]['loss']:.4g}"):
        assert part in card
    asked = json.loads((tmp_path / "run.json").read_text(encoding="utf8"))
    assert asked["strengths"] == {"beta": 0.25}
    assert asked["settings"]["batch_size"] == 8
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_plan_by_hand(model, tokenizer):
    """Oracle: four pairs of 4 + 3 or 7 + 3 tokens in two parts, of like pairs, which are read once: a, b b and d, then
    a, b b b b b and d; 4 · 4 bytes a parameter."""
    short, long = ({"prompt": "a", "chosen": c, "rejected": "d"} for c in ("b b", "b b b b b"))
    before = copy.deepcopy(model)
    settings = Settings(steps=10, batch_size=4, parts=2)
    planned = plan(model, tokenizer, [short, long, short, long], method="dpo", settings=settings)
    assert (planned.examples, planned.steps, planned.epochs) == (4, 10, 10.0)
    assert planned.tokens_per_step == 2 * (4 + 3) + 2 * (7 + 3)
    assert planned.read == pytest.approx((1 + 2 + 1 + 1 + 5 + 1) / 34)
    assert planned.trained == planned.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert planned.memory == 16 * planned.parameters
    assert 0 < planned.seconds < 60
    assert "10, 10.00 epochs" in str(planned)
    assert_same_weights(model, before, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())
