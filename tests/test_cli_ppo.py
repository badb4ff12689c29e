"""`dapedu ppo` and `rloo`: a session with a reward model, what reaches the training, a resumed run, what is wrong."""

import csv
import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from dapedu import ppo, reviews
from dapedu.cli import main
from dapedu.data import encode, save_records
from dapedu.models import ScalarHead, head_rewards, load_head, load_model, save_model
from dapedu.ppo import PPOSettings, RLOOSettings, train_ppo
from dapedu.sampling import Samples, sample
from tests.words import opinionated, word_tokenizer

torch.set_num_threads(1)

PROMPTS = ["a student reviews the cheap hotel:", "a mother reviews the new tent:", "a father reviews the big cafe:"]
FEW = ["--steps", "4", "--batch-size", "8", "--max-new-tokens", "16", "--quiet"]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}now{% endif %}"
)


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Path:
    """An SFT model, pairs and a reward model, each made by the command; then what does not go with them."""
    folder = tmp_path_factory.mktemp("session")
    assert main(["data", "corpus", "--number", "300", "--output", f"{folder}/corpus.jsonl"]) == 0
    words = ["sft", "--data", f"{folder}/corpus.jsonl", "--output", f"{folder}/sft", "--quiet"]
    assert main([*words, "--steps", "80", "--batch-size", "32"]) == 0
    words = ["data", "pairs", "--model", f"{folder}/sft", "--number", "48", "--output", f"{folder}/pairs.jsonl"]
    assert main(words) == 0
    words = ["reward", "--model", f"{folder}/sft", "--data", f"{folder}/pairs.jsonl", "--output", f"{folder}/reward"]
    assert main([*words, "--steps", "10", "--batch-size", "16", "--quiet"]) == 0

    few = word_tokenizer("a b c d e f")
    save_model(ScalarHead(opinionated(vocab_size=9)), few, folder / "foreign", card="")
    sft, tokenizer = load_model(folder / "sft" / "model")
    short = opinionated(vocab_size=len(tokenizer), n_positions=20)
    save_model(ScalarHead(short), tokenizer, folder / "short", card="")
    sft.resize_token_embeddings(len(tokenizer) + 1, mean_resizing=False)
    save_model(sft, tokenizer, folder / "wide", card="")
    for name, prompts in {
        "prompts": PROMPTS,
        "empty": [*PROMPTS, " "],
        "talk": [[{"role": "user", "content": PROMPTS[0]}]],
        "strange": ["a b:", *reviews.draw_prompts(20, split="train")],  # too short to be among those tried first
    }.items():
        save_records(folder / f"{name}.jsonl", [{"prompt": prompt} for prompt in prompts])
    save_records(folder / "texts.jsonl", [{"text": prompt} for prompt in PROMPTS])
    return folder


def words_of(command: str, session: Path, reward: str = "gold") -> list[str]:
    files = ["--model", f"{session}/sft", "--prompts", f"{session}/prompts.jsonl"]
    return [command, *files, "--reward", reward, "--beta", "0.5"]


def refused(words: list[str], capsys) -> str:
    """What is said of words that make no sense: one line, status 2."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert line.startswith(f"dapedu {words[0]}: ")
    return line


def table(run: Path) -> list[dict[str, str]]:
    """A run's log, without the speed, which no two runs share."""
    with (run / "log.csv").open(encoding="utf8", newline="") as file:
        return [{name: value for name, value in row.items() if name != "tokens_s"} for row in csv.DictReader(file)]


@pytest.fixture
def asked(monkeypatch) -> list[SimpleNamespace]:
    """What the trainers were asked, which do nothing."""
    calls = []
    for name in ("train_ppo", "train_rloo"):

        def train(model, tokenizer, prompts, reward, *, name=name, **options):
            calls.append(SimpleNamespace(name=name, prompts=prompts, reward=reward, **options))
            return [{"step": 1}]

        monkeypatch.setattr(ppo, name, train)
    return calls


# ---- a session ----


def test_from_a_reward_model_to_an_evaluation(session, tmp_path, capsys):
    """Oracle: `train_ppo` with the same models, bit by bit; the reward model's own numbers of the same samples."""
    words = [*words_of("ppo", session, f"{session}/reward"), "--value-model", f"{session}/reward"]
    assert main([*words, "--output", f"{tmp_path}/run", "--reward-scale", "2", *FEW]) == 0
    out = capsys.readouterr().out.splitlines()
    policy, tokenizer = load_model(session / "sft" / "model")
    head, _ = load_head(session / "reward" / "model")
    log = train_ppo(
        policy,
        tokenizer,
        PROMPTS,
        lambda samples: 2 * head_rewards(head, samples.sequences, batch_size=4),  # a minibatch's
        beta=0.5,
        value_model=load_head(session / "reward" / "model")[0],
        settings=PPOSettings(steps=4, batch_size=8, max_new_tokens=16),
        progress=False,
    )
    trained, start = (
        load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "run", session / "sft")
    )
    for name, value in policy.state_dict().items():
        if name in trained:
            assert torch.equal(trained[name], value), name
    assert not torch.equal(trained["transformer.wte.weight"], start["transformer.wte.weight"])
    for name in ("step", "reward", "kl", "explained"):
        assert f"{name} {log[-1][name]:.4g}" in out[0], name
    assert out[1].startswith(f"wrote {tmp_path}/run/model, log.csv beside it")

    words = ["evaluate", "--model", f"{tmp_path}/run", "--reward", f"{session}/reward", "--number", "16"]
    assert main([*words, "--temperature", "1", "0.5", "--output", f"{tmp_path}/report.json"]) == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf8"))
    prompts = reviews.draw_prompts(16, split="test", seed=0)
    for heat in ("1", "0.5"):
        samples = sample(policy, tokenizer, prompts, temperature=float(heat), seed=0)
        assert report[heat]["gold"][0] == pytest.approx(reviews.gold_rewards(samples).mean().item())
        rewards = head_rewards(head, samples.sequences)
        assert report[heat]["reward model"][0] == pytest.approx(rewards.mean().item(), abs=1e-6)


@pytest.mark.parametrize("command", ["ppo", "rloo"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(command, session, tmp_path, capsys, monkeypatch):
    """Oracle: the run that was left alone, its weights bit by bit and its log; Ctrl-C comes in the second step."""
    words = [*words_of(command, session), *FEW, "--checkpoint-every", "4", "--output"]
    assert main([*words, f"{tmp_path}/whole"]) == 0
    judge, calls = reviews.gold_rewards, []

    def interrupted(samples):
        calls.append(samples)
        if len(calls) == 3:  # the first ones are a trial
            os.kill(os.getpid(), signal.SIGINT)
        return judge(samples)

    with monkeypatch.context() as patch:
        patch.setattr(reviews, "gold_rewards", interrupted)
        capsys.readouterr()
        assert main([*words, f"{tmp_path}/run"]) == 130
    assert "dapedu: stopped after step 2 of 4; saved in" in capsys.readouterr().err
    early = [*words, f"{tmp_path}/run", "--model", "none"]  # is not even looked for
    assert "already holds a run: resume it (--resume)" in refused(early, capsys)
    assert "beta was 0.5, now 1.0" in refused([*words, f"{tmp_path}/run", "--resume", "--beta", "1"], capsys)
    assert main([*words, f"{tmp_path}/run", "--resume"]) == 0
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "run")]
    assert weights[0] == weights[1]
    assert [row["step"] for row in table(tmp_path / "run")] == ["1", "2", "3", "4"]
    assert table(tmp_path / "run") == table(tmp_path / "whole")


# ---- what reaches the training ----


@pytest.mark.parametrize(("command", "kind"), [("ppo", PPOSettings), ("rloo", RLOOSettings)])
def test_every_setting_is_an_option(command, kind, session, tmp_path, asked, capsys):
    """Oracle: the fields of the settings, each given another value; without options, the defaults, which help shows."""
    words = [*words_of(command, session), "--output", f"{tmp_path}/run"]
    assert main(words) == 0
    assert asked[-1].settings == kind()
    other = {int: 12, float: 0.75, bool: True, str: "loss", type(None): 0.75}
    given = {field.name: other[type(field.default)] for field in dataclasses.fields(kind)}
    given |= {"normalise_advantages": not kind().normalise_advantages}
    del given["evaluate_every"]  # of metrics, which the command has none of
    for name, value in given.items():
        option = name.replace("_", "-")
        words += (
            [f"--{option}" if value else f"--no-{option}"] if isinstance(value, bool) else [f"--{option}", str(value)]
        )
    assert main([*words, "--resume", "--quiet"]) == 0
    assert asked[-1].settings == kind(**given)
    call = asked[-1]
    assert (call.name, call.beta, call.resume, call.progress) == (f"train_{command}", 0.5, True, False)
    assert Path(call.output) == tmp_path / "run"
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith(f"usage: dapedu {command}")
    assert f"completions a step (default: {kind().batch_size})" in shown
    assert f"longest completion (default: {kind().max_new_tokens})" in shown
    assert f"standard deviation 1 in each batch (default: {'yes' if command == 'ppo' else 'no'})" in shown


def test_rewards_are_the_judges_times_the_scale(session, tmp_path, asked):
    """Oracle: the world's rules for one completion at a time; the reward model's number on the last token."""
    texts = ["the bed is good. thanks.", "the tent", "thanks. i hate the cake."]
    _, tokenizer = load_model(session / "sft" / "model")
    samples = Samples(PROMPTS, texts, [True, False, True], encode(PROMPTS, texts, tokenizer))
    rows = list(zip(PROMPTS, texts, samples.finished, strict=True))
    head, _ = load_head(session / "reward" / "model")
    with torch.no_grad():
        last = [head(torch.tensor([ids]))[0, -1].item() for ids in samples.sequences.input_ids]
    assert len(set(last)) == 3
    for reward, expected in {
        "gold": [reviews.gold_reward(*row) for row in rows],
        "mild-proxy": [reviews.proxy_reward(*row, strength="mild") for row in rows],
        "strong-proxy": [reviews.proxy_reward(*row, strength="strong") for row in rows],
        f"{session}/reward": last,
        f"{session}/reward/model": last,
    }.items():
        for scale in ([], ["--reward-scale", "4"]):
            assert main([*words_of("rloo", session, reward), "--output", f"{tmp_path}/run", *scale]) == 0
            found = torch.as_tensor(asked[-1].reward(samples)).tolist()
            assert found == pytest.approx([(4 if scale else 1) * value for value in expected], abs=1e-5), reward


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"prompt": p} for p in [*PROMPTS, PROMPTS[0]]], PROMPTS),  # each once
        ([{"prompt": p, "completion": "good."} for p in PROMPTS], PROMPTS),
        ([{"prompt": p, "chosen": "good.", "rejected": "bad."} for p in PROMPTS], PROMPTS),
        ([{"chosen": f"{p} good.", "rejected": f"{p} bad."} for p in PROMPTS], PROMPTS),
        ([{"prompt": p, "completions": ["a.", "b."], "rewards": [0, 1]} for p in PROMPTS], PROMPTS),
        ([{"prompt": [{"role": "user", "content": "a"}]}], ["user a now"]),
        ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}], ["user a now"]),
    ],
)
def test_prompts_of_records_of_every_kind(rows, expected, session, tmp_path, asked):
    """Oracle: by hand, as the fields and the template say."""
    words = words_of("ppo", session, f"{session}/reward")
    policy, tokenizer = load_model(session / "sft" / "model")
    tokenizer.chat_template = TEMPLATE
    save_model(policy, tokenizer, tmp_path / "talks", card="")
    save_records(tmp_path / "rows.jsonl", rows)
    words += ["--model", f"{tmp_path}/talks", "--prompts", f"{tmp_path}/rows.jsonl"]
    assert main([*words, "--output", f"{tmp_path}/run"]) == 0
    assert asked[-1].prompts == expected


# ---- a dry run ----


@pytest.mark.parametrize(
    ("command", "reward", "models"),
    [
        ("ppo", "model", "4: policy, reference, value model, reward model"),
        ("ppo", "gold", "3: policy, reference, value model"),
        ("rloo", "model", "3: policy, reference, reward model"),
        ("rloo", "gold", "2: policy, reference"),
    ],
)
def test_a_dry_run_says_what_it_would_take_and_writes_nothing(command, reward, models, session, tmp_path, capsys):
    """Oracle: the parameters counted from the model's shape; an empty folder."""
    words = words_of(command, session, f"{session}/reward" if reward == "model" else reward)
    before = sorted(session.rglob("*"))
    assert main([*words, "--output", f"{tmp_path}/run", "--dry-run", *FEW, "--steps", "2000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["prompts      3", "steps        2,000, of 8 completions", f"models       {models}"]
    vocabulary = len(reviews.make_tokenizer())
    each = (vocabulary + 96 + 2) * 64 + 2 * (12 * 64**2 + 13 * 64)  # a GPT-2 of width 64 and depth 2
    heads = models.count("value") + models.count("reward")
    n, trained = int(models[0]) * each + heads * 65, each + models.count("value") * (each + 65)
    assert lines[3] == f"parameters   {n:,}, of which {trained:,} are trained"
    assert lines[4].startswith(f"memory       {(4 * n + 12 * trained) / 2**20:,.0f} MiB for weights")
    assert lines[5].startswith("time         about ")
    assert not list(tmp_path.iterdir())
    assert sorted(session.rglob("*")) == before


# ---- what is wrong is said in one line ----


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompts", "{}/none.jsonl"], "none.jsonl: there is no such file"),
        (["--prompts", "{}/texts.jsonl"], "texts.jsonl, line 1: no `prompt`"),
        (["--prompts", "{}/empty.jsonl"], "empty.jsonl, line 4: `prompt` is empty"),
        (["--prompts", "{}/talk.jsonl"], "talk.jsonl, line 1: the tokenizer has no chat template"),
        (["--prompts", "{}/strange.jsonl", "--reward", "gold"], "judge: prompt is 'a b:', expected one such as"),
        (["--model", "{}/none"], "there is no folder"),
        (["--reward", "goldd"], "--reward is goldd, which is no folder, nor one of gold, mild-proxy, strong-proxy"),
        (["--reward", "{}/sft"], "has no scalar_head.safetensors"),
        (["--reward", "{}/foreign"], "--reward {}/foreign has other tokens than --model {}/sft writes"),
        (["--value-model", "{}/foreign"], "--value-model {}/foreign has other tokens than --model {}/sft writes"),
        (["--reward", "{}/short"], "--reward {}/short reads 20 tokens; prompt and completion may have 71"),
        (["--model", "{}/wide"], "but the model may write up to"),
        (["--max-new-tokens", "90", "--reward", "gold"], "with max_new_tokens 90 is more than the 96"),
        (["--reward-scale", "0"], "--reward-scale is 0, expected a positive number"),
        (["--reward-scale", "nan"], "--reward-scale is nan, expected a positive number"),
        (["--beta", "-1"], "beta is -1.0, expected a finite number ≥ 0"),
        (["--steps", "0"], "Settings: steps is 0, expected at least 1"),
        (["--batch-size", "9", "--samples-per-prompt", "2"], "batch_size is 9, expected a multiple of"),
    ],
)
def test_bad_words_and_files_are_refused_before_anything_is_written(words, message, session, tmp_path, capsys):
    """Oracle: one line with the message, status 2, and no folder."""
    words = [*words_of("ppo", session, f"{session}/reward"), *(word.format(session) for word in words)]
    said = refused([*words, "--output", f"{tmp_path}/run", "--quiet"], capsys)
    assert message.replace("{}", str(session)) in said
    assert not list(tmp_path.iterdir())


def test_a_baseline_needs_a_second_completion(session, tmp_path, capsys):
    words = [*words_of("rloo", session), "--samples-per-prompt", "1", "--output", f"{tmp_path}/run"]
    assert "samples_per_prompt is 1, expected at least 2" in refused(words, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["model", "reward", "value-model"])
def test_no_model_that_is_read_is_written_over(option, session, tmp_path, capsys):
    """Oracle: one line, the files as they were."""
    here = shutil.copytree(session / ("sft" if option == "model" else "reward") / "model", tmp_path / "here")
    before = sorted(tmp_path.rglob("*"))
    words = [*words_of("ppo", session), f"--{option}", str(here), "--output", f"{tmp_path}/here/."]
    assert f"--output is the folder of --{option} {here}, which would change" in refused(words, capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_evaluation_refuses_a_reward_model_of_other_tokens(session, capsys):
    words = ["evaluate", "--model", f"{session}/sft", "--reward", f"{session}/foreign"]
    assert "has other tokens than --model" in refused(words, capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ppo", "--model", "x", "--prompts", "x", "--reward", "gold", "--output", "y"], "required: --beta"),
        (["rloo", "--beta", "1", "--value-model", "x"], "required: --model"),
        (["ppo", "--kl-in", "both"], "--kl-in: invalid choice: 'both'"),
        (["ppo", "--seed", "-1"], "--seed: -1, expected a whole number"),
    ],
)
def test_words_that_are_none_of_the_commands(words, message, capsys):
    """Oracle: argparse's line, status 2."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_run_that_diverges_ends_with_1(session, tmp_path, capsys):
    """Oracle: the status, and the advice as one line; a learning rate of 1e30 needs no help to diverge."""
    words = [*words_of("ppo", session), *FEW, "--output", f"{tmp_path}/run", "--lr", "1e30"]
    assert main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dapedu: step ")
    assert "Try a smaller learning rate (now 1e+30)" in line
