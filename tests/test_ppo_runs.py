"""Runs of PPO and RLOO: what they draw and read, stopped and resumed, and what is refused before anything starts."""

import copy
import csv
import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from dapedu.data import collate
from dapedu.logps import layout_of
from dapedu.models import ScalarHead, add_lora, load_model, save_model
from dapedu.packing import pack
from dapedu.ppo import RLOOSettings, step, train_ppo, train_rloo, training
from dapedu.train import DivergedError, RunError
from tests.ppo_cases import PROMPTS, go, opinionated_head, reward, without_speed
from tests.train_cases import WORDS, assert_same_weights
from tests.words import opinionated, word_tokenizer

torch.set_num_threads(1)

METHODS = ["ppo", "rloo"]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(WORDS)


@pytest.fixture
def model():
    return opinionated(vocab_size=9)


def disturbed(at: int, disturbance):
    """The reward, and at step `at` something that happens; step 0 is when it is tried."""
    calls = []

    def of_samples(samples):
        calls.append(samples)
        if len(calls) == at + 1:
            disturbance()
        return reward(samples)

    return of_samples


# ---- what is drawn and read ----


@pytest.mark.parametrize("method", METHODS)
def test_both_layouts_are_one(method, model, tokenizer, monkeypatch):
    """Oracle: sequences in rectangles, which any model can read; tiny models read them packed."""
    assert layout_of(model) is pack
    policies, heads, logs = [], [], []
    for layout in (pack, collate):
        monkeypatch.setattr(training, "layout_of", lambda model, layout=layout: layout)
        policies.append(copy.deepcopy(model))
        heads.append(opinionated_head() if method == "ppo" else None)
        logs.append(go(policies[-1], tokenizer, method=method, value_model=heads[-1], steps=3, lr=2e-5))
    for packed, padded in zip(*map(without_speed, logs), strict=True):
        assert packed == pytest.approx(padded, rel=1e-4, abs=1e-5)
    assert_same_weights(policies[0], policies[1], atol=5e-6)
    if method == "ppo":
        assert_same_weights(heads[0], heads[1], atol=5e-5)


def test_what_a_step_draws(model, tokenizer):
    """Oracle: by hand: each prompt before one comes again, its completions side by side, another order in each step."""
    seen = []

    def record(samples):
        seen.append(samples)
        return reward(samples)

    go(model, tokenizer, reward=record, method="rloo", steps=3, batch_size=28, samples_per_prompt=4)
    tried, *steps = seen
    assert sorted(set(tried.prompts)) == sorted(PROMPTS)
    orders = [samples.prompts[::4] for samples in steps]
    for samples, order in zip(steps, orders, strict=True):
        assert samples.prompts == [prompt for prompt in order for _ in range(4)]
        assert sorted(order[:5]) == sorted(PROMPTS)
        assert len(set(order[5:])) == 2
        assert any(len(set(samples.completions[start : start + 4])) > 1 for start in range(0, 28, 4))
    assert len(set(map(tuple, orders))) == 3


def test_a_step_is_cut_into_as_many_minibatches_as_asked(model, tokenizer, monkeypatch):
    """Oracle: ten completions in four parts are 3, 3, 2 and 2, in each of two epochs, and everyone once."""
    cut = []
    of_rows = step._tokens_of
    monkeypatch.setattr(step, "_tokens_of", lambda rows, mask: cut.append(rows.tolist()) or of_rows(rows, mask))
    go(model, tokenizer, steps=1, batch_size=10, epochs=2, minibatches=4)
    assert [len(rows) for rows in cut] == [3, 3, 2, 2] * 2
    for epoch in (cut[:4], cut[4:]):
        assert sorted(row for rows in epoch for row in rows) == list(range(10))
    assert cut[:4] != cut[4:]


def test_special_tokens_count_and_a_tokenizer_may_have_no_end(tokenizer):
    """Oracle: a model that always draws <pad>: its text is empty, and it never ends; without an end nothing does."""
    silent = opinionated(vocab_size=9)
    with torch.no_grad():
        pad = silent.transformer.wte.weight[0]
        silent.transformer.ln_f.bias.copy_(100 * pad / pad.square().sum())
    seen = []
    log = go(silent, tokenizer, reward=lambda samples: seen.append(samples) or [0.0] * len(samples), steps=1)
    assert (log[0]["finished"], log[0]["length"]) == (0, 5)
    assert set(seen[1].completions) == {""}
    endless = word_tokenizer("x y a b c d e f g", special={})
    assert endless.eos_token is None
    log = go(opinionated(vocab_size=9), endless, prompts=["a b", "c"], steps=2)
    assert [(row["finished"], row["length"]) for row in log] == [(0, 5), (0, 5)]


@pytest.mark.parametrize("where", ["dropout", "half precision"])
def test_all_models_are_read_in_full_and_without_dropout(where, model, tokenizer):
    """Oracle: the run of a model that has neither; the value model is a copy of what came in."""
    plain, other = (copy.deepcopy(model) for _ in range(2))
    if where == "dropout":
        other.train()
        for module in other.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
    else:
        plain, other = plain.bfloat16().float(), other.bfloat16()
    expected, actual = (go(policy, tokenizer, steps=3, checkpoint_every=1) for policy in (plain, other))
    assert without_speed(actual) == without_speed(expected)
    assert_same_weights(other, plain, atol=0)


def test_adapters_alone_are_trained(model, tokenizer, tmp_path):
    """Oracle: the base's weights, as they were; what is loaded again draws and scores as the policy did."""
    save_model(model, tokenizer, tmp_path / "base", card="")
    policy = add_lora(load_model(tmp_path / "base")[0], rank=2)
    before = {name: value.clone() for name, value in policy.named_parameters()}
    go(policy, tokenizer, steps=2, lr=1e-2, output=tmp_path / "run")
    moved = {name for name, value in policy.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*.safetensors")
    kept = {name for name in load_file(checkpoint) if name.startswith("model.")}
    assert all("lora_" in name or "linear" in name or name == "model.kl_coef" for name in kept)
    assert any(name.startswith("model.value_model.") for name in kept)
    assert_same_weights(load_model(tmp_path / "run" / "model")[0], policy.merge_and_unload(), atol=1e-6)


# ---- the log ----


def test_when_what_is_logged_and_that_the_folder_holds_it(model, tokenizer, tmp_path):
    """Oracle: every third step, evaluations every second, and the last; the table has the same digits."""
    untrained = copy.deepcopy(model)
    metrics = {"norm": lambda policy: policy.transformer.wpe.weight.norm().item()}
    log = go(
        model, tokenizer, steps=7, log_every=3, evaluate_every=2, metrics=metrics, output=tmp_path / "run", final_lr=0.4
    )
    assert [(row["step"], "norm" in row) for row in log] == [(2, True), (3, False), (4, True), (6, True), (7, True)]
    assert [row["lr"] for row in log] == pytest.approx([4.5e-5, 4e-5, 3.5e-5, 2.5e-5, 2e-5])
    assert log[-1]["norm"] == pytest.approx(metrics["norm"](model), rel=1e-5) != metrics["norm"](untrained)
    with (tmp_path / "run" / "log.csv").open(encoding="utf8", newline="") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    assert rows == log
    assert_same_weights(load_model(tmp_path / "run" / "model")[0], model, atol=0)
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf8")
    for part in ("# A model trained by ppo", "5 prompts; β = 0.3", "steps 7", f"reward {log[-1]['reward']:.4g}"):
        assert part in card


# ---- interruptions ----


@pytest.mark.parametrize(
    ("how", "method", "options"),
    [
        ("by Ctrl-C", "ppo", {"target_kl": 0.5}),
        ("by an error", "rloo", {"target_kl": 0.5, "kl_in": "loss", "normalise_advantages": True}),
    ],
)
def test_a_stopped_run_goes_on(how, method, options, model, tokenizer, tmp_path):
    """Oracle: a run that was left alone: policy, value model, β and moments bit by bit, every number of its log."""

    def stop() -> None:
        if how == "by an error":
            raise ConnectionError("the judge is away")
        os.kill(os.getpid(), signal.SIGINT)

    error, message, last = (
        (KeyboardInterrupt, "^stopped after step 3 of 6; saved in .*; --resume goes on$", 3)
        if how == "by Ctrl-C"
        else (ConnectionError, "the judge is away", 2)
    )
    options = options | {"method": method, "steps": 6, "checkpoint_every": 2}
    alone, stopped, resumed = (copy.deepcopy(model) for _ in range(3))
    whole = go(alone, tokenizer, output=tmp_path / "alone", **options)
    with pytest.raises(error, match=message):
        go(stopped, tokenizer, reward=disturbed(3, stop), output=tmp_path / "run", **options)
    assert max(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == f"checkpoint-{last:08}.safetensors"
    log = go(resumed, tokenizer, output=tmp_path / "run", resume=True, **options)
    assert without_speed(log) == without_speed(whole)
    assert len({row["kl_coef"] for row in log}) == 6
    one, other = (load_file(tmp_path / run / "checkpoint-00000006.safetensors") for run in ("alone", "run"))
    assert one.keys() == other.keys()
    assert {"model.kl_coef", "optimizer.0.exp_avg"} < one.keys()
    for name in one.keys() - {"random.cpu", "random.cuda"}:
        torch.testing.assert_close(other[name], one[name], rtol=0, atol=0, msg=name)
    assert_same_weights(resumed, alone, atol=0)
    again = go(copy.deepcopy(model), tokenizer, output=tmp_path / "run", resume=True, **options)  # nothing is left
    assert again == log


def test_without_a_folder_nothing_is_kept(model, tokenizer):
    """Oracle: the message, after the step was finished."""
    stop = disturbed(1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(
        KeyboardInterrupt, match=r"^stopped after step 1 of 4; nothing is saved: the run had no folder$"
    ):
        go(model, tokenizer, reward=stop, steps=4)


def test_a_run_goes_on_only_as_it_was_asked(model, tokenizer, tmp_path):
    """Oracle: the message names what differs, and no byte changes."""
    options = {"output": tmp_path / "run", "steps": 4}
    stop = disturbed(2, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        go(copy.deepcopy(model), tokenizer, reward=stop, value_model=opinionated_head(), **options)
    before = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
    for changes, message in (
        ({"resume": False}, "already holds a run"),
        ({"beta": 0.4}, r"beta was 0\.3, now 0\.4"),
        ({"lr": 1e-3}, r"lr was 5e-05, now 0\.001"),
        ({"kl_in": "loss"}, "kl_in was reward, now loss"),
        ({"prompts": PROMPTS[::-1]}, "data was"),
        ({"reward": lambda samples: 2 * reward(samples)}, "reward was"),
        ({"metrics": {"one": len}}, "metrics was"),
        ({"value_model": ScalarHead(opinionated(vocab_size=9))}, "value_model was"),
        ({"method": "rloo", "samples_per_prompt": 2}, "method was ppo, now rloo"),
    ):
        asked = {"resume": True, "value_model": opinionated_head()} | options | changes
        with pytest.raises(RunError, match=message):
            go(copy.deepcopy(model), tokenizer, **asked)
    with pytest.raises(RunError, match="start was"):
        go(opinionated(vocab_size=9, seed=2), tokenizer, resume=True, value_model=opinionated_head(), **options)
    after = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
    assert after == before


# ---- what is refused ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "^train_ppo: there are no prompts"),
        ({"prompts": ["a", ""]}, "prompt 1 has no tokens"),
        ({"prompts": ["a", "b " * 12] + ["c"] * 9}, "has 12 tokens, which with max_new_tokens 5 is more than the 16"),
        ({"beta": -0.1}, "^train_ppo: beta is -0.1, expected a finite number ≥ 0"),
        ({"beta": math.nan}, "^train_ppo: beta is nan"),
        ({"beta": math.inf, "method": "rloo"}, "^train_rloo: beta is inf"),
        ({"beta": 0.0, "target_kl": 1.0}, "^train_ppo: beta is 0, which no target_kl changes"),
        ({"reward": lambda samples: [0.0] * 7 + [math.nan] * (len(samples) - 7)}, "^reward gives nan for '"),
        ({"reward": lambda samples: torch.full((len(samples),), math.inf)}, "^reward gives inf for '"),
        (
            {"reward": lambda samples: torch.zeros(len(samples), 1)},
            r"^reward gives shape \(\d+, 1\), expected \(\d+,\)",
        ),
        ({"reward": lambda samples: 0.0}, r"^reward gives shape \(\), expected"),
        ({"method": "rloo", "samples_per_prompt": 1}, "^train_rloo: samples_per_prompt is 1, expected at least 2"),
    ],
)
def test_refused_before_anything_starts(changes, message, model, tokenizer, tmp_path):
    """Oracle: the message, an empty folder, and the weights as they were."""
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=message):
        go(model, tokenizer, output=tmp_path / "run", **{"steps": 2} | changes)
    assert not list(tmp_path.iterdir())
    assert_same_weights(model, before, atol=0)


def test_a_value_model_needs_weights_of_its_own(model, tokenizer, tmp_path):
    """Oracle: the message; a copy is taken."""
    with pytest.raises(ValueError, match=r"^train_ppo: value_model shares weights with model; give it a copy"):
        go(model, tokenizer, value_model=ScalarHead(model), steps=1, output=tmp_path / "run")
    assert not list(tmp_path.iterdir())
    go(model, tokenizer, value_model=ScalarHead(copy.deepcopy(model)), steps=1)


def test_a_value_model_of_another_kind_is_refused(model, tokenizer):
    """Oracle: the message; it would be read in the way that suits the policy."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(
        ValueError, match=r"^train_ppo: value_model is a LlamaModel, expected a GPT2Model as the policy"
    ):
        go(model, tokenizer, value_model=ScalarHead(LlamaForCausalLM(config)), steps=1)


def test_settings_of_the_other_method_are_refused(model, tokenizer):
    """Oracle: the message; without it RLOO would be trained under PPO's name."""
    with pytest.raises(TypeError, match=r"^train_ppo: settings is a RLOOSettings, expected PPOSettings"):
        train_ppo(model, tokenizer, PROMPTS, reward, beta=1.0, settings=RLOOSettings(steps=1))


@pytest.mark.parametrize(("method", "train"), [("ppo", train_ppo), ("rloo", train_rloo)])
def test_several_processes_are_refused(method, train, model, tokenizer, tmp_path, monkeypatch):
    """Oracle: the message, and an empty folder."""
    monkeypatch.setattr(training, "this_process", lambda: SimpleNamespace(num_processes=2, device="cpu"))
    with pytest.raises(ValueError, match=f"^train_{method}: 2 processes were started, expected one"):
        train(model, tokenizer, PROMPTS, reward, beta=1.0, output=tmp_path / "run", progress=False)
    assert not list(tmp_path.iterdir())


def test_what_diverges_stops_before_it_spoils_the_weights(model, tokenizer):
    """Oracle: rewards whose gradient has no norm in float32; the message says what to try; the weights."""
    before = copy.deepcopy(model)
    with pytest.raises(DivergedError, match=r"^step 1: .*policy_grad_norm inf.* smaller learning rate \(now 5e-05\)"):
        go(model, tokenizer, method="rloo", reward=lambda samples: 1e30 * reward(samples), steps=2)
    assert_same_weights(model, before, atol=0)


def test_rewards_that_break_on_the_way_are_named(model, tokenizer):
    """Oracle: the message, at the third step; the first two were learnt from."""
    before, calls = copy.deepcopy(model), []

    def breaks(samples):
        calls.append(samples)
        return [math.nan] * len(samples) if len(calls) == 4 else reward(samples)

    with pytest.raises(DivergedError, match=r"^step 3: reward gives nan for '.*', expected a finite number"):
        go(model, tokenizer, method="rloo", reward=breaks, steps=5)
    assert len(calls) == 4
    assert not torch.equal(model.transformer.wpe.weight, before.transformer.wpe.weight)
