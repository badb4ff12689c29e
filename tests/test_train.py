"""The loop against one written by hand in float64 and against TRL; what it logs, reads, refuses and leaves alone."""

import copy
import json
import math

import pytest
import torch
from torch import Tensor
from words import opinionated, word_tokenizer

from dapedu import train
from dapedu.data import encode
from dapedu.losses import click_loss, dpo_loss, ipo_loss, rrhf_loss, slic_hf_loss, spin_loss
from dapedu.models import load_model, score
from dapedu.train import (
    METHODS,
    DivergedError,
    Examples,
    Method,
    Settings,
    batches_of_epoch,
    parts_of_batch,
    plan,
    train_preference,
)
from dapedu.train.monitor import estimate_kl

torch.set_num_threads(1)

WORDS = "a b c d e f"
PLAIN = {"log_every": 1, "warmup": 0, "kl_samples": 0}


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(WORDS)


@pytest.fixture
def model():
    return opinionated(vocab_size=9)


def texts(seed: int, longest: int) -> list[str]:
    """Forty of one to `longest` words."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda high, n: torch.randint(high, (n,), generator=generator).tolist()  # noqa: E731
    return [" ".join(WORDS.split()[word] for word in draw(6, n + 1)) for n in draw(longest, 40)]


PROMPTS, FIRST, SECOND, THIRD = texts(1, 4), texts(2, 7), texts(3, 7), texts(4, 7)
RECORDS = {
    "demonstrations": [{"prompt": p, "completion": a} for p, a in zip(PROMPTS, FIRST, strict=True)],
    "preferences": [
        {"prompt": p, "chosen": a, "rejected": b, "target": c}
        for p, a, b, c in zip(PROMPTS, FIRST, SECOND, THIRD, strict=True)
    ],
    "rankings": [
        {"prompt": p, "completions": [a, b, c], "rewards": [n % 3, 1, 0.5]}
        for n, (p, a, b, c) in enumerate(zip(PROMPTS, FIRST, SECOND, THIRD, strict=True))
    ],
}


def records_of(method: str) -> list[dict]:
    return RECORDS[METHODS[method].records]


def go(model, tokenizer, method: str, *, records=None, strengths=None, **options):
    """`train_preference` in silence; options that `Settings` has go there."""
    settings = {name: options.pop(name) for name in list(options) if name in Settings.__dataclass_fields__}
    return train_preference(
        model,
        tokenizer,
        records or records_of(method),
        method=method,
        strengths=strengths,
        settings=Settings(**PLAIN | settings),
        progress=False,
        **options,
    )


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
    "rrhf": lambda p, r, n, w: rrhf_loss(
        candidate_logps=torch.stack(p, 1), candidate_lengths=torch.stack(n, 1), rewards=w, sft_weight=0.5
    ),
    "click": lambda p, r, n, w: click_loss(
        policy_chosen_logps=p[0],
        policy_rejected_logps=p[1],
        target_mean_logps=p[2] / n[2],
        delta=3.0,
        contrast_weight=0.4,
    ),
    "spin": lambda p, r, n, w: spin_loss(**four(p, r), beta=0.2),
}
STRENGTHS = {
    "sft": {},
    "dpo": {"beta": 0.3},
    "ipo": {"tau": 0.3},
    "ipo-mean": {"tau": 0.3},
    "slic-hf": {"delta": 2.0, "sft_weight": 0.2},
    "rrhf": {"sft_weight": 0.5},
    "click": {"delta": 3.0, "contrast_weight": 0.4},
    "spin": {"beta": 0.2},
}


def columns_of(method: str, record: dict) -> list[str]:
    if METHODS[method].records == "rankings":
        return record["completions"]
    fields = ["completion"] if method == "sft" else ["chosen", "rejected"]
    return [record[field] for field in fields + ["target"] * (method in ("slic-hf", "click"))]


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
        rewards = torch.tensor([record["rewards"] for record in batch]) if method == "rrhf" else None
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


def weights(model) -> dict[str, Tensor]:
    """Without the biases of the keys: a softmax does not see them, so their gradients are rounding alone."""
    kept = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().double()
        kept[name] = torch.cat([value[:64], value[128:]]) if name.endswith("c_attn.bias") else value
    return kept


def assert_same_weights(actual, expected, atol: float) -> None:
    for name, value in weights(expected).items():
        torch.testing.assert_close(weights(actual)[name], value, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


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
    assert (weights(model)["transformer.wte.weight"] - weights(start)["transformer.wte.weight"]).abs().max() > 1e-3
    assert_same_weights(model, peer, atol=1e-5)


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


def test_the_reference_is_asked_once(model, tokenizer):
    """Oracle: texts that pass through the model, counted: with gradient those of the batches, without one all once."""
    seen = {True: 0, False: 0}

    def count(module, inputs, kwargs, output) -> None:
        seen[torch.is_grad_enabled()] += len(kwargs["input_ids"])

    model.transformer.register_forward_hook(count, with_kwargs=True)
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
    """Oracle: `score` of the same samples under both; as long as the model can read behind the longest prompt."""
    from dapedu.sampling import sample

    start = copy.deepcopy(model)
    held_out = [{"prompt": "a b c d e f a b c d", "chosen": "a", "rejected": "b"}, *RECORDS["preferences"][:3]]
    log = go(model, tokenizer, "dpo", steps=6, batch_size=8, lr=1e-3, held_out=held_out, kl_samples=50)
    prompts = ([record["prompt"] for record in held_out] * 13)[:50]
    samples = sample(model, tokenizer, prompts, max_new_tokens=16 - 10, seed=0)
    kl = (score(model, samples.sequences) - score(start, samples.sequences)).mean().item()
    assert log[-1]["kl"] == pytest.approx(kl, abs=1e-5)
    assert ["kl" in row for row in log] == [False] * 5 + [True]
    assert kl > 0.05
    assert estimate_kl(start, start, tokenizer, prompts, 0) == pytest.approx(0, abs=1e-5)


# ---- the data ----


@pytest.mark.parametrize("n", [1, 7, 64, 300])
def test_an_epoch_has_every_row_once(n):
    """Oracle: a sorted list; the order is another in another epoch and with another seed, and the same again."""

    def rows(seed: int, epoch: int) -> list[list[int]]:
        return batches_of_epoch(n, batch_size=8, seed=seed, epoch=epoch)

    orders = [rows(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for batches in orders:
        assert sorted(row for batch in batches for row in batch) == list(range(n))
        assert list(map(len, batches)) == [8] * (n // 8) + [n % 8] * (n % 8 > 0)
    assert orders == [rows(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    if n > 8:
        assert len({json.dumps(order) for order in orders}) == 4


def test_a_batch_is_a_sample_of_the_data():
    """Oracle: by chance the mean of a batch strays from that of the data by a standard error; 1,000 batches."""
    widths = torch.randint(3, 60, (2_000,), generator=torch.Generator().manual_seed(0)).double()
    batches = [batch for e in range(8) for batch in batches_of_epoch(2_000, batch_size=16, seed=0, epoch=e)]
    strays = torch.stack([widths[batch].mean() for batch in batches]) - widths.mean()
    assert strays.std().item() == pytest.approx(widths.std().item() / 4, rel=0.1)


def test_parts_of_a_batch_by_hand():
    """Oracle: rows 4, 0, 3, 1 have widths 1, 5, 2, 9; two parts pad 1 + 0 + 4 + 0 cells, one part 8 + 4 + 7."""
    widths = [5, 9, 7, 2, 1]
    assert parts_of_batch([4, 0, 3, 1], widths, parts=2) == [[4, 3], [0, 1]]
    assert parts_of_batch([4, 0, 3, 1], widths, parts=3) == [[4, 3], [0, 1]]  # as alike in number as can be
    assert parts_of_batch([4, 0, 3, 1], widths, parts=1) == [[4, 3, 0, 1]]
    assert parts_of_batch([4, 0], widths, parts=9) == [[4], [0]]


@pytest.mark.parametrize("parts", [1, 3])
def test_training_reads_epoch_after_epoch(parts, model, tokenizer, monkeypatch):
    """Oracle: `batches_of_epoch`, three times; 40 rows are batches of 16, 16 and 8."""
    read, select = [], Examples.select
    monkeypatch.setattr(Examples, "select", lambda self, rows: read.append(list(rows)) or select(self, rows))
    go(model, tokenizer, "sft", steps=9, batch_size=16, seed=5, parts=parts)
    steps = [sorted(row for part in read[n : n + parts] for row in part) for n in range(0, len(read), parts)]
    epochs = [batches_of_epoch(40, batch_size=16, seed=5, epoch=epoch) for epoch in range(3)]
    assert steps == [sorted(batch) for epoch in epochs for batch in epoch]


def test_examples_by_hand(tokenizer):
    """Oracle: <eos> 1, a 3 … f 8; a target makes a third column for methods that have one, and for no other."""
    records = [{"prompt": "a", "chosen": "b b", "rejected": "c", "target": ""}]
    for method, k in {"dpo": 2, "slic-hf": 3, "click": 3}.items():
        examples = Examples.of(records, METHODS[method], tokenizer)
        assert examples.sequences.input_ids == [[3, 4, 4, 1], [3, 5, 1], [3, 1]][:k]
        assert (examples.k, len(examples), examples.widths) == (k, 1, [4])
        assert examples.lengths.tolist() == [[3, 2, 1][:k]]
    ranking = Examples.of([{"prompt": "a", "completions": ["b", "c"], "rewards": [1, 2]}], METHODS["rrhf"], tokenizer)
    assert ranking.rewards.tolist() == [[1.0, 2.0]]
    assert ranking.rewards.dtype == torch.float32


def test_fingerprints_differ_with_anything_that_differs(tokenizer):
    """Oracle: one change each: a word, the order, a reward, where the prompt ends."""
    records = [{"prompt": "a", "completions": ["b", "c"], "rewards": [1, 2]}] * 2

    def fingerprint(**change) -> str:
        return Examples.of([records[0], records[1] | change], METHODS["rrhf"], tokenizer).fingerprint()

    changes = [{}, {"prompt": "b"}, {"completions": ["c", "b"]}, {"rewards": [1, 3]}, {"prompt": "a b"}]
    changes.append({"prompt": "a b", "completions": ["", "c"]})
    assert len({fingerprint(**change) for change in changes}) == len(changes)
    assert fingerprint() == fingerprint()


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
        ("dpo", {"records": RECORDS["demonstrations"]}, "records[0] has no `chosen`; preferences need it"),
        ("rrhf", {"records": [RECORDS["rankings"][0], {"prompt": "a"}]}, "records[1] has no `completions`"),
        (
            "slic-hf",
            {"records": [RECORDS["preferences"][0], LESSON["preferences"][0]]},
            "records differ in their number of texts",
        ),
        ("dpo", {"held_out": RECORDS["rankings"]}, "records[0] has no `chosen`"),
        (
            "sft",
            {"records": [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b " * 15}]},
            "records[1] has 17 tokens, prompt and end included, more than the 16 that the model can read",
        ),
        ("sft", {"held_out": [{"prompt": "a " * 20, "completion": "b"}]}, "records[0] has 22 tokens"),
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
    """Oracle: one batch in two parts of two pairs, 2 + 1 + 1 and 5 + 1 + 1 tokens wide; 4 · 4 bytes a parameter."""
    short, long = ({"prompt": "a", "chosen": c, "rejected": "d"} for c in ("b b", "b b b b b"))
    before = copy.deepcopy(model)
    settings = Settings(steps=10, batch_size=4, parts=2)
    planned = plan(model, tokenizer, [short, long, short, long], method="dpo", settings=settings)
    assert (planned.examples, planned.steps, planned.epochs) == (4, 10, 10.0)
    assert planned.tokens_per_step == 2 * 2 * 4 + 2 * 2 * 7
    assert planned.padding == pytest.approx(1 - (2 * (4 + 3) + 2 * (7 + 3)) / (16 + 28))
    assert planned.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert planned.memory == 16 * planned.parameters
    assert 0 < planned.seconds < 60
    assert "10, 10.00 epochs" in str(planned)
    assert_same_weights(model, before, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())
