"""`dapedu rounds`: runs against `train_in_rounds` called directly, a resumed run, a dry run, what is wrong."""

import csv
import dataclasses
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from dapedu import reviews
from dapedu.cli import main, rounds
from dapedu.data import save_records
from dapedu.models import ScalarHead, head_rewards, load_head, load_model, save_model
from dapedu.sampling import sample
from dapedu.train import METHODS, Settings, loop, minus_kl, train_in_rounds, two_by_two
from tests.words import opinionated, word_tokenizer

torch.set_num_threads(1)

WORDS = "a student mother father reviews the cheap new hotel: tent: good. thanks."
PROMPTS = [
    f"a {reviewer} reviews the {descriptor} {item}:"
    for reviewer in ("student", "mother", "father")
    for descriptor in ("cheap", "new")
    for item in ("hotel", "tent")
]
TRAINING = {"steps": 3, "batch_size": 8, "lr": 1e-3, "warmup": 0, "log_every": 1}
SHAPE = {"rounds": 2, "candidates": 4, "max_new_tokens": 12}
N_WORDS, N_POSITIONS = len(WORDS.split()) + 3, 32  # three special tokens


def options_of(values: dict) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]


FEW = [*options_of(TRAINING | SHAPE), "--quiet"]


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Path:
    """A model of a few words, prompts, a reward model of random opinions; then what does not go with them."""
    folder = tmp_path_factory.mktemp("session")
    tokenizer, model = word_tokenizer(WORDS), opinionated(vocab_size=N_WORDS, n_positions=N_POSITIONS)
    save_model(model, tokenizer, folder / "sft", card="")
    head = ScalarHead(model)
    torch.nn.init.normal_(head.linear.weight, generator=torch.Generator().manual_seed(0))
    save_model(head, tokenizer, folder / "reward", card="")
    save_model(ScalarHead(opinionated(vocab_size=9)), word_tokenizer("a b c d e f"), folder / "foreign", card="")
    save_records(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in [*PROMPTS, PROMPTS[0]]])
    save_records(folder / "texts.jsonl", [{"text": prompt} for prompt in PROMPTS])
    save_records(folder / "strange.jsonl", [{"prompt": prompt} for prompt in ["a b:", *PROMPTS]])
    return folder


def words_of(session: Path, method: str = "rrhf", reward: str = "gold") -> list[str]:
    files = ["--model", f"{session}/sft", "--prompts", f"{session}/prompts.jsonl"]
    return ["rounds", "--method", method, *files, "--reward", reward, *FEW]


def refused(words: list[str], capsys) -> str:
    """What is said of words that make no sense: one line, status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(words)
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("dapedu rounds: ")
    return line


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def table(run: Path) -> list[dict[str, str]]:
    """A run's log, without the speed, which no two runs share."""
    with (run / "log.csv").open(encoding="utf8", newline="") as file:
        return [{name: value for name, value in row.items() if name != "tokens_s"} for row in csv.DictReader(file)]


# ---- runs ----


@pytest.mark.parametrize(
    ("method", "reward", "words", "options"),
    [
        ("dpo", "mild-proxy", ["--beta", "0.5"], {"strengths": {"beta": 0.5}}),
        ("slic-hf", "gold", ["--rank", "two-by-two", "--delta", "2"], {"strengths": {"delta": 2}, "rank": two_by_two}),
        ("rrhf", "reward", ["--reward-scale", "2", "--beta", "0.3"], {}),
    ],
)
def test_a_run_is_that_of_the_function(method, reward, words, options, session, tmp_path, capsys):
    """Oracle: `train_in_rounds` with the same models, its weights bit by bit; the table from what it returns."""
    folder = f"{session}/reward" if reward == "reward" else reward
    assert main([*words_of(session, method, folder), *words, "--output", f"{tmp_path}/run"]) == 0
    header, *rows, last = capsys.readouterr().out.splitlines()
    model, tokenizer = load_model(session / "sft")
    start, (head, _) = load_model(session / "sft")[0], load_head(session / "reward")
    judges = {
        "gold": reviews.gold_rewards,
        "mild-proxy": lambda samples: reviews.proxy_rewards(samples, strength="mild"),
        "reward": minus_kl(lambda s: 2 * head_rewards(head, s.sequences, batch_size=8), model, start, beta=0.3),
    }
    settings = Settings(**TRAINING)
    done = train_in_rounds(
        model, tokenizer, PROMPTS, judges[reward], method=method, settings=settings, progress=False, **SHAPE, **options
    )
    assert weights(tmp_path / "run") == weights(tmp_path / "run" / "round-2")
    trained = load_file(tmp_path / "run" / "model" / "model.safetensors")
    own = model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in trained.items())
    assert any(not torch.equal(start.state_dict()[name], value) for name, value in trained.items())
    assert sorted(folder.name for folder in (tmp_path / "run").iterdir()) == ["model", "round-1", "round-2", "run.json"]
    assert header == "round  completions  records  mean reward  mean of the best"
    assert len(rows) == 2
    for number, (row, one) in enumerate(zip(rows, done, strict=True), 1):
        mean, best = (f"{value:.4f}" for value in (one.rewards.mean(), one.rewards.max(dim=1).values.mean()))
        assert row.split() == [str(number), "24", str(len(one.records)), mean, best]
        assert len(row) == len(header)
    assert last == f"wrote {tmp_path}/run/model, the run of each round beside it"
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf8")
    means = ", ".join(f"{one.rewards.mean():.4f}" for one in done)
    scale = 2 if reward == "reward" else 1
    assert card.endswith(f"4 completions a prompt, judged by {folder}, times {scale}: mean rewards {means}\n")
    assert f"# A model trained by {method}" in card


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(session, tmp_path, capsys, monkeypatch):
    """Oracle: the run that was left alone, weights, logs and table; Ctrl-C comes in the second step of round 2."""
    words = [*words_of(session), "--checkpoint-every", "3", "--beta", "0.5", "--output"]
    assert main([*words, f"{tmp_path}/whole"]) == 0
    printed, measure, calls = capsys.readouterr().out, loop.measure, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:  # it is seen in the step after
            os.kill(os.getpid(), signal.SIGINT)
        return measure(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "measure", interrupted)
        assert main([*words, f"{tmp_path}/run"]) == 130
    assert f"dapedu: stopped after step 2 of 3; saved in {tmp_path}/run/round-2" in capsys.readouterr().err
    run = [*words, f"{tmp_path}/run"]
    assert "already holds a run: resume it (--resume)" in refused(run, capsys)
    assert "beta was 0.5, now 1.0" in refused([*run, "--resume", "--beta", "1"], capsys)
    assert "rounds was 2, now 3" in refused([*run, "--resume", "--rounds", "3"], capsys)
    assert "lr was 0.001, now 0.01" in refused([*run, "--resume", "--lr", "0.01"], capsys)
    for _ in range(2):  # what is over can be resumed, too
        assert main([*run, "--resume"]) == 0
        assert capsys.readouterr().out.replace("/run/", "/whole/") == printed
        assert weights(tmp_path / "run") == weights(tmp_path / "whole")
        for one in ("round-1", "round-2"):
            assert table(tmp_path / "run" / one) == table(tmp_path / "whole" / one)
    assert "already holds a run: resume it (--resume)" in refused([*run, "--model", "none"], capsys)


def test_rows_come_as_the_rounds_end(session, tmp_path, capsys, monkeypatch):
    """Oracle: what is on stdout when the second round is judged; the bar is on stderr, unless it is to be quiet."""
    seen, judge = [], reviews.gold_rewards

    def looked_at(samples):
        seen.append(capsys.readouterr())
        time.sleep(0.2)  # a bar is drawn again after a tenth of a second, and these rounds may be faster
        return judge(samples)

    monkeypatch.setattr(reviews, "gold_rewards", looked_at)
    words = [word for word in words_of(session) if word != "--quiet"]
    assert main([*words, "--output", f"{tmp_path}/run"]) == 0
    trial, first, second = seen
    assert (trial.out, trial.err) == ("", "")
    assert first.out.startswith("round  completions")
    assert second.out.split()[:2] == ["1", "24"]
    assert "rrhf:  50%" in second.err


# ---- what reaches the training ----


@pytest.fixture
def asked(monkeypatch) -> list[SimpleNamespace]:
    """What `train_in_rounds` was asked, which does nothing but leave the last round's card."""
    calls = []

    def train(model, *, output, rounds, **options):
        calls.append(SimpleNamespace(rounds=rounds, **options))
        (output / f"round-{rounds}" / "model").mkdir(parents=True)
        (output / f"round-{rounds}" / "model" / "README.md").touch()

    monkeypatch.setattr(rounds, "train_in_rounds", train)
    return calls


def test_every_option_reaches_the_training(session, tmp_path, asked):
    """Oracle: the fields of the settings, each given another value; without options the functions' own defaults."""
    files = words_of(session)[: -len(FEW)]
    assert main([*files, "--max-new-tokens", "20", "--output", f"{tmp_path}/plain"]) == 0
    plain = asked[-1]
    assert (plain.settings, plain.strengths, plain.rank) == (Settings(), dict(METHODS["rrhf"].strengths), None)
    assert (plain.rounds, plain.candidates, plain.temperature, plain.top_k) == (3, 4, 1, 0)
    assert (plain.prompts, plain.resume, plain.progress) == (PROMPTS, False, True)

    other = {"max_length": 40, "lr": 0.5, "clip": 0.5}
    given = {field.name: other.get(field.name, 7) for field in dataclasses.fields(Settings)}
    del given["evaluate_every"], given["kl_samples"]  # of held-out records, of which there are none
    shape = {"rounds": 2, "candidates": 3, "max_new_tokens": 9, "temperature": 0.5, "top_k": 5}
    words = [*files, *options_of(given | shape), "--prompts-per-round", "3", "--sft-weight", "0.25"]
    assert main([*words, "--output", f"{tmp_path}/run", "--quiet", "--resume"]) == 0
    call = asked[-1]
    assert (call.settings, call.strengths) == (Settings(**given), {"sft_weight": 0.25})
    assert {name: getattr(call, name) for name in shape} == shape
    assert (call.prompts, call.resume, call.progress) == (PROMPTS[:6], True, False)


@pytest.mark.parametrize("method", ["dpo", "ipo"])
def test_beta_is_the_method_s_or_the_reward_s(method, session, tmp_path, asked):
    """Oracle: the table of methods: dpo has a β, ipo none."""
    assert main([*words_of(session, method), "--beta", "0.5", "--output", f"{tmp_path}/run"]) == 0
    assert asked[-1].strengths == ({"beta": 0.5} if method == "dpo" else METHODS["ipo"].strengths)
    assert (asked[-1].reward.__qualname__.split(".")[0] == "minus_kl") is (method == "ipo")


# ---- a dry run ----


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(session, tmp_path, capsys):
    """Oracle: by hand, the parameters counted from the model's shape; an empty folder."""
    words = [*words_of(session, "rrhf", f"{session}/reward"), "--beta", "1", "--steps", "2000"]
    before = sorted(session.rglob("*"))
    assert main([*words, "--output", f"{tmp_path}/run", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "prompts      12: 2 rounds of 6, 4 candidates each"
    samples = sample(*load_model(session / "sft"), [p for p in PROMPTS[:6] for _ in range(4)], max_new_tokens=12)
    n = sum(all(samples.completions[row : row + 4]) for row in range(0, 24, 4))  # a ranking has no empty text
    assert lines[1] == f"records      about {n} a round, from 6 prompts tried"
    assert lines[2] == "steps        2,000 a round, of 8 records"
    assert lines[3] == "models       3: policy, reward model, reference"
    each = (N_WORDS + N_POSITIONS + 2) * 64 + 2 * (12 * 64**2 + 13 * 64)  # a GPT-2 of width 64 and depth 2
    assert lines[4].startswith(f"memory       {(4 * (3 * each + 65) + 12 * each) / 2**20:,.0f} MiB for weights")
    assert lines[5].startswith("time         about ")
    assert not list(tmp_path.iterdir())
    assert sorted(session.rglob("*")) == before


# ---- what is wrong is said in one line ----


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompts", "{}/none.jsonl"], "none.jsonl: there is no such file"),
        (["--prompts", "{}/texts.jsonl"], "texts.jsonl, line 1: no `prompt`"),
        (["--prompts", "{}/strange.jsonl"], "judge: prompt is 'a b:', expected one such as"),
        (["--rounds", "13"], "prompts.jsonl: 12 different prompts, expected at least 13"),
        (["--prompts-per-round", "7"], "prompts.jsonl: 12 different prompts, expected at least 14"),
        (["--model", "{}/none"], "there is no folder"),
        (["--reward", "goldd"], "--reward is goldd, which is no folder, nor one of gold, mild-proxy, strong-proxy"),
        (["--reward", "{}/sft"], "has no scalar_head.safetensors"),
        (["--reward", "{}/foreign"], "--reward {}/foreign has other tokens than --model {}/sft writes"),
        (["--reward-scale", "0"], "--reward-scale is 0, expected a positive number"),
        (["--beta", "-1"], "--beta is -1, expected a finite number ≥ 0"),
        (["--beta", "inf"], "--beta is inf, expected a finite number ≥ 0"),
        (["--method", "dpo", "--beta", "-1"], "beta is -1.0, expected"),
        (["--tau", "1"], "--tau is no strength of rrhf, which has --sft-weight"),
        (["--method", "sft", "--tau", "1"], "--tau is no strength of sft, which has none"),
        (["--sft-weight", "-1"], "sft_weight is -1.0, expected"),
        (["--candidates", "1"], "--candidates is 1, expected at least 2"),
        (["--rank", "two-by-two"], "--rank is about pairs, but rrhf learns from rankings"),
        (
            ["--method", "ipo", "--rank", "two-by-two", "--candidates", "5"],
            "--candidates is 5, expected an even number for --rank two-by-two",
        ),
        (["--max-new-tokens", "30"], "with max_new_tokens 30 is more than the 32"),
        (["--max-length", "13"], "--max-length is 13, expected at least 14: --max-new-tokens and 2"),
        (["--temperature", "-1"], "temperature is -1.0, expected at least 0"),
        (["--top-k", "-1"], "top_k is -1, expected at least 0"),
        (["--steps", "0"], "Settings: steps is 0, expected at least 1"),
        (["--output", "{}/sft"], "--output is the folder of --model {}/sft, which would change"),
    ],
)
def test_bad_words_and_files_are_refused_before_anything_is_written(words, message, session, tmp_path, capsys):
    """Oracle: one line with the message, status 2, and no folder."""
    before = sorted(session.rglob("*"))
    words = ["--output", f"{tmp_path}/run", *(word.format(session) for word in words)]
    assert message.replace("{}", str(session)) in refused([*words_of(session), *words], capsys)
    assert not list(tmp_path.iterdir())
    assert sorted(session.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "spin"], "argument --method: invalid choice: 'spin'"),
        (["--method", "rrhf", "--model", "x", "--prompts", "x", "--output", "y"], "required: --reward"),
        (["--rounds", "0"], "--rounds: 0, expected at least 1"),
    ],
)
def test_words_that_are_none_of_the_command(words, message, capsys):
    """Oracle: argparse's line, status 2."""
    with pytest.raises(SystemExit) as stopped:
        main(["rounds", *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_round_without_a_difference_to_learn_from_ends_with_1(session, tmp_path, capsys):
    """Oracle: at temperature 0 all candidates of a prompt are the same, so that no two make a pair."""
    words = [*words_of(session, "dpo"), "--temperature", "0", "--output", f"{tmp_path}/run"]
    assert main(words) == 1
    assert capsys.readouterr().err == (
        "dapedu: train_in_rounds: the candidates of round 1 leave no record to learn from\n"
    )


def test_a_run_that_diverges_ends_with_1(session, tmp_path, capsys):
    """Oracle: the status, and the advice as one line; a learning rate of 1e30 needs no help to diverge."""
    assert main([*words_of(session), "--output", f"{tmp_path}/run", "--lr", "1e30"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dapedu: step ")
    assert "Try a smaller learning rate (now 1e+30)" in line
