"""Reward models: their training against a loop written by hand, resumed, by the command; and their calibration."""

import copy
import json
import math
import os
import signal

import pytest
import torch
from torch import Tensor

from dapedu.cli import main
from dapedu.data import encode, load_preferences, load_rankings, save_records
from dapedu.evaluate import calibration
from dapedu.models import ModelError, ScalarHead, head_rewards, load_head, load_model, save_model
from dapedu.train import REWARD_SETTINGS, RunError, Scores, Settings, batches_of_epoch, train_preference, train_reward
from dapedu.train.monitor import measure
from tests.train_cases import PLAIN, PROMPTS, RECORDS, WORDS, assert_same_weights
from tests.words import opinionated, word_tokenizer

torch.set_num_threads(1)

KINDS = ["preferences", "rankings"]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(WORDS)


@pytest.fixture
def head():
    """With opinions already, so that the transformer has a gradient at once."""
    head = ScalarHead(opinionated(vocab_size=9))
    torch.nn.init.normal_(head.linear.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    return head


def go(head, tokenizer, records, **options):
    """`train_reward` in silence; options that `Settings` has go there."""
    settings = {name: options.pop(name) for name in list(options) if name in Settings.__dataclass_fields__}
    return train_reward(head, tokenizer, records, settings=Settings(**PLAIN | settings), progress=False, **options)


# ---- the loss and the step ----


def slow_rewards(head, tokenizer, record: dict, texts: list[str]) -> Tensor:
    """Each text alone: the transformer's last hidden state times the map."""
    found = []
    for text in texts:
        ids = torch.tensor([[*tokenizer(record["prompt"])["input_ids"], *tokenizer(text)["input_ids"], 1]])
        hidden = head.transformer(input_ids=ids).last_hidden_state[0, -1]
        found.append(hidden @ head.linear.weight[0] + head.linear.bias[0])
    return torch.stack(found)


def slow_loss(head, tokenizer, record: dict) -> Tensor:
    """Bradley–Terry or Plackett–Luce as they are written: a product of choices of the best one left."""
    if "chosen" in record:
        chosen, rejected = slow_rewards(head, tokenizer, record, [record["chosen"], record["rejected"]])
        return -(chosen.exp() / (chosen.exp() + rejected.exp())).log()
    ranks = sorted(range(3), key=lambda place: -record["rewards"][place])  # of equals the first one first
    left = list(slow_rewards(head, tokenizer, record, [record["completions"][place] for place in ranks]))
    loss = torch.zeros(())
    while len(left) > 1:
        loss = loss - (left[0].exp() / sum(reward.exp() for reward in left)).log()
        left.pop(0)
    return loss


def by_hand(head, tokenizer, records: list[dict], settings: Settings) -> tuple[list[float], ScalarHead]:
    """The whole of training again in float64: text by text, AdamW, clipping and schedule written out."""
    head = copy.deepcopy(head).double()
    parameters = list(head.parameters())
    first, second = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    batches = batches_of_epoch(len(records), batch_size=settings.batch_size, seed=settings.seed, epoch=0)
    losses = []
    for step in range(1, settings.steps + 1):
        loss = torch.stack([slow_loss(head, tokenizer, records[row]) for row in batches[step - 1]]).mean()
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
    return losses, head


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_steps_by_hand(kind, head, tokenizer):
    """Oracle: `by_hand`; the batch in one part, then in three."""
    options = {"steps": 4, "batch_size": 8, "lr": 1e-3, "warmup": 2, "clip": 0.5}
    expected, trained = by_hand(head, tokenizer, RECORDS[kind], Settings(**options))
    assert len(set(expected)) == 4
    for parts in (1, 3):
        own = copy.deepcopy(head)
        log = go(own, tokenizer, RECORDS[kind], parts=parts, **options)
        assert [row["loss"] for row in log] == pytest.approx(expected, rel=1e-4)
        for each in (own, trained):  # neither loss sees the bias: its gradient is rounding alone
            each.linear.bias.data.zero_()
        assert_same_weights(own, trained, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_what_is_liked(kind, tokenizer):
    """Oracle: a text that begins with a b is best, one with an f worst; ten records are held out, some words unseen.

    A fresh head's first loss is that of a coin: log 2, or log 3 + log 2.
    """
    texts = [[f"{p.split()[0]} b", f"{p.split()[0]} c", f"{p.split()[0]} f"] for p in PROMPTS]
    lesson = {
        "preferences": [{"prompt": p, "chosen": t[0], "rejected": t[2]} for p, t in zip(PROMPTS, texts, strict=True)],
        "rankings": [
            {"prompt": p, "completions": t[::-1], "rewards": [-1, 0.5, 2]} for p, t in zip(PROMPTS, texts, strict=True)
        ],
    }[kind]
    head = ScalarHead(opinionated(vocab_size=9))
    log = go(head, tokenizer, lesson[10:], held_out=lesson[:10], steps=40, batch_size=16, lr=2e-3, evaluate_every=40)
    assert log[0]["loss"] == pytest.approx(math.log(2 if kind == "preferences" else 6), abs=1e-5)
    assert log[-1]["held_out_loss"] < 0.2 * log[0]["loss"]
    assert log[-1]["held_out_accuracy"] == 1.0


# ---- what is logged and kept ----


def test_what_is_logged_are_rewards(head, tokenizer):
    """Oracle: `head_rewards` of held-out pairs under the head as it left."""
    held_out = RECORDS["preferences"][:7]
    log = go(head, tokenizer, RECORDS["preferences"], held_out=held_out, steps=4, batch_size=8, kl_samples=8)
    chosen, rejected = (
        head_rewards(head, encode([r["prompt"] for r in held_out], [r[field] for r in held_out], tokenizer))
        for field in ("chosen", "rejected")
    )
    expected = {
        "loss": -torch.sigmoid(chosen - rejected).log().mean(),
        "chosen": chosen.mean(),
        "rejected": rejected.mean(),
        "margin": (chosen - rejected).mean(),
        "accuracy": (chosen > rejected).float().mean(),
    }
    for name, value in expected.items():
        assert log[-1][f"held_out_{name}"] == pytest.approx(value.item(), abs=1e-4), name
    assert all("kl" not in row for row in log)


def test_the_accuracy_of_rankings_by_hand():
    """Oracle: of the first ranking two pairs of three are ordered right; of the second, in which two are equal, one of
    two, as equal levels are not; of the third there is none, which counts half."""
    levels = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0], [1.0, 2.0, 3.0]])
    rewards = torch.tensor([[3.0, 2.0, 1.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.5]])
    found = measure(torch.ones(3), Scores(levels, torch.ones(3, 3), rewards=rewards))
    assert found == {"loss": 1.0, "accuracy": pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on(kind, head, tokenizer, tmp_path):
    """Oracle: a run that was left alone: weights bit by bit, every number of its log, the model's folder."""

    def stop(own) -> float:
        if own is interrupted:
            os.kill(os.getpid(), signal.SIGINT)
        return 0.0

    options = {"steps": 12, "batch_size": 16, "lr": 1e-3, "evaluate_every": 5, "metrics": {"stop": stop}}
    alone, interrupted, resumed = (copy.deepcopy(head) for _ in range(3))
    whole = go(alone, tokenizer, RECORDS[kind], **options)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 6 of 12; saved in"):
        go(interrupted, tokenizer, RECORDS[kind], output=tmp_path / "run", **options)
    with pytest.raises(RunError, match=r"lr was 0\.001, now 0\.1"):
        go(copy.deepcopy(head), tokenizer, RECORDS[kind], output=tmp_path / "run", resume=True, **options | {"lr": 0.1})
    log = go(resumed, tokenizer, RECORDS[kind], output=tmp_path / "run", resume=True, **options)
    assert [row | {"tokens_s": 0} for row in log] == [row | {"tokens_s": 0} for row in whole]
    assert_same_weights(resumed, alone, atol=0)
    loaded, _ = load_head(tmp_path / "run" / "model")
    assert_same_weights(loaded, alone, atol=0)
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf8")
    for part in ("# A reward model", "40 examples", "steps 12", f"loss {log[-1]['loss']:.4g}", "load_head"):
        assert part in card
    assert "text-generation" not in card


# ---- what is refused ----


def test_what_is_no_reward_model_or_not_for_one(head, tokenizer, tmp_path):
    """Oracle: the message, and an empty folder."""
    model, pairs = opinionated(vocab_size=9), RECORDS["preferences"]
    output = {"output": tmp_path / "run", "progress": False}
    with pytest.raises(ValueError, match=r"no method 'reward'; there are sft, .*, and train_reward for reward models"):
        train_preference(model, tokenizer, pairs, method="reward", **output)
    with pytest.raises(TypeError, match=r"^train_preference: model is a ScalarHead, expected a language model"):
        train_preference(head, tokenizer, pairs, method="dpo", **output)
    with pytest.raises(TypeError, match=r"^train_reward: head is a GPT2LMHeadModel, expected a ScalarHead"):
        train_reward(model, tokenizer, pairs, **output)
    for records, held_out, message in [
        ([], (), "there are no records"),
        (RECORDS["demonstrations"], (), r"records\[0\]: no `chosen`; preferences need it"),
        ([RECORDS["rankings"][0], pairs[0]], (), r"records\[1\]: no `completions`; rankings need it"),
        (pairs, RECORDS["rankings"], r"records\[0\]: no `chosen`"),
        ([{"prompt": "a", "chosen": "b " * 15, "rejected": "c"}], (), "17 tokens, prompt and end included, are more"),
    ]:
        with pytest.raises(ValueError, match=message):
            train_reward(head, tokenizer, records, held_out=held_out, **output)
    assert not list(tmp_path.iterdir())


# ---- by the command ----


@pytest.fixture(scope="module")
def start(tmp_path_factory, tokenizer):
    """A model's folder, and a file of each kind."""
    folder = tmp_path_factory.mktemp("start")
    save_model(opinionated(vocab_size=9), tokenizer, folder / "model", card="")
    for kind in KINDS:
        save_records(folder / f"{kind}.jsonl", RECORDS[kind][10:])
        save_records(folder / f"{kind}-held-out.jsonl", RECORDS[kind][:10])
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_trains_on_what_the_file_holds(kind, start, tokenizer, tmp_path, capsys):
    """Oracle: `train_reward` with the same settings, bit by bit; the last line is the log's last row."""
    words = ["reward", "--model", f"{start}/model", "--data", f"{start}/{kind}.jsonl", "--output", f"{tmp_path}/run"]
    words += ["--held-out", f"{start}/{kind}-held-out.jsonl", "--steps", "6", "--lr", "1e-3", "--quiet"]
    assert main([*words, "--dry-run"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()][:2] == ["examples", "steps"]
    assert not list(tmp_path.iterdir())
    assert main(words) == 0
    out = capsys.readouterr().out.splitlines()
    settings = Settings(**REWARD_SETTINGS.__dict__ | {"steps": 6, "lr": 1e-3})
    load = load_preferences if kind == "preferences" else load_rankings
    records, held_out = load(start / f"{kind}.jsonl"), load(start / f"{kind}-held-out.jsonl")
    head = ScalarHead(load_model(start / "model")[0])
    log = train_reward(head, tokenizer, records, held_out=held_out, settings=settings, progress=False)
    loaded, read = load_head(tmp_path / "run" / "model")
    assert_same_weights(loaded, head, atol=0)
    assert read("a")["input_ids"] == tokenizer("a")["input_ids"]
    for name in ("loss", "accuracy", "held_out_loss", "held_out_accuracy"):
        assert f"{name} {log[-1][name]:.4g}" in out[0], name
    assert out[1].startswith(f"wrote {tmp_path}/run/model, log.csv beside it")
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf8"))["method"] == "reward"
    with pytest.raises(ModelError, match="read it with load_head"):
        load_model(tmp_path / "run" / "model")
    assert main([*words, "--resume"]) == 0
    with pytest.raises(SystemExit):
        main(words)
    assert "already holds a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "{}/none.jsonl"], "none.jsonl: there is no such file"),
        (["--data", "{}/model/config.json"], "not an array of objects"),
        (["--data", "{}/rankings.jsonl", "--held-out", "{}/preferences.jsonl"], "line 1: no `completions`"),
        (["--data", "{}/rankings.jsonl", "--held-out", "{}/rankings.jsonl"], "evaluated on what it is trained on"),
        (["--data", "{}/preferences.jsonl", "--model", "{}/none"], "there is no folder"),
        (["--data", "{}/preferences.jsonl", "--steps", "0"], "Settings: steps is 0"),
    ],
)
def test_the_command_refuses_in_one_line(words, message, start, tmp_path, capsys):
    """Oracle: one line with the message, status 2, and no folder."""
    words = ["reward", "--model", f"{start}/model", *(word.format(start) for word in words)]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--output", f"{tmp_path}/run", "--quiet"])
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert line.startswith("dapedu reward: ")
    assert message in line
    assert not list(tmp_path.iterdir())


# ---- calibration ----


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_calibration_by_hand():
    """Oracle: four pairs called at 0.9, three of them right; two at 0.6, both right; a tie, half right at 0.5."""
    margins = [logit(0.9)] * 3 + [-logit(0.9)] + [logit(0.6)] * 2 + [0.0]
    found = calibration(torch.tensor(margins), bins=2)
    assert found.counts.tolist() == [3, 4]
    assert found.confidence.tolist() == pytest.approx([(0.6 + 0.6 + 0.5) / 3, 0.9], abs=1e-6)
    assert found.accuracy.tolist() == pytest.approx([2.5 / 3, 0.75])
    assert found.error == pytest.approx((abs(2.5 - 1.7) + abs(3 - 3.6)) / 7, abs=1e-6)
    finer = calibration(torch.tensor(margins, dtype=torch.float64), bins=50)
    assert finer.counts.tolist() == [1, 2, 4]  # empty bins are left out
    assert finer.error == pytest.approx((0 + 2 * 0.4 + 4 * 0.15) / 7)


def test_a_model_that_knows_how_unsure_it_is_has_no_error():
    """Oracle: outcomes drawn with the predicted probability: four standard errors; margins twice as large, and it is
    surer than right in every bin."""
    generator = torch.Generator().manual_seed(0)
    margins = 2 * torch.randn(200_000, generator=generator)
    wins = torch.rand(200_000, generator=generator) < torch.sigmoid(margins)
    margins = torch.where(wins, margins, -margins)
    found = calibration(margins)
    assert len(found.counts) == 10
    assert found.counts.sum() == 200_000
    assert ((found.accuracy - found.confidence).abs() < 4 * (0.25 / found.counts) ** 0.5).all()
    loud = calibration(2 * margins)
    assert (loud.accuracy < loud.confidence).all()
    assert loud.error > 10 * found.error
    sure = calibration(torch.tensor([math.inf, math.inf, -math.inf]))
    assert (sure.confidence.tolist(), sure.accuracy.tolist()) == ([1.0], [pytest.approx(2 / 3)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3),), r"margins has shape \(2, 3\), expected \(pairs,\), at least one"),
        ((torch.zeros(0),), r"margins has shape \(0,\)"),
        ((torch.tensor([1.0, math.nan]),), "a margin is NaN"),
    ],
)
def test_a_calibration_of_what(arguments, message):
    with pytest.raises(ValueError, match=f"^calibration: {message}"):
        calibration(*arguments)
    with pytest.raises(ValueError, match=r"^calibration: bins is 0, expected at least 1"):
        calibration(torch.ones(3), bins=0)
