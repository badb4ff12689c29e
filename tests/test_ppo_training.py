"""PPO and RLOO as a whole against a loop written by hand, and RLOO against TRL's."""

import copy
import math
import statistics
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dapedu.data import Sequences
from dapedu.models import load_model, save_model
from dapedu.ppo import PPOSettings, RLOOSettings
from dapedu.sampling import sample
from tests.ppo_cases import BETA, PROMPTS, SHORT, go, opinionated_head, reward
from tests.train_cases import WORDS, assert_same_weights, weights
from tests.words import opinionated, word_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(WORDS)


@pytest.fixture
def model():
    return opinionated(vocab_size=9)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


class ByHand:
    """The whole of training again in float64: text by text, token by token, padding nowhere."""

    def __init__(self, model, value_model, settings, beta: float) -> None:
        self.policy, self.reference = copy.deepcopy(model).double(), copy.deepcopy(model).double()
        self.values = copy.deepcopy(value_model).double() if value_model else None
        self.settings, self.beta = settings, beta
        trained = [("policy", self.policy, settings.lr)]
        if value_model:
            trained.append(("value", self.values, settings.value_lr))
        self.trained = [
            (name, list(part.parameters()), rate, torch.optim.AdamW(part.parameters(), lr=rate, weight_decay=0.0))
            for name, part, rate in trained
        ]

    def step(self, number: int, tokenizer) -> dict[str, float]:
        s = self.settings
        samples = self.draw(s.seed + 1_000_003 * number, tokenizer)
        texts = list(zip(samples.sequences.input_ids, samples.sequences.prompt_lengths, strict=True))
        with torch.no_grad():
            old = [self.logps(self.policy, *text) for text in texts]
            reference = [self.logps(self.reference, *text) for text in texts]
            old_values = [self.values_of(*text) for text in texts] if self.values else None
        rewards = reward(samples).tolist()
        found = {
            "reward": mean(rewards),
            "kl": mean([float((p - q).sum()) for p, q in zip(old, reference, strict=True)]),
            "kl_coef": self.beta,
            "entropy": mean([-float(p.sum()) for p in old]),
            "length": mean(list(map(len, old))),
            "finished": mean([ids[-1] == 1 for ids, _ in texts]),
        }
        token_rewards = self.token_rewards(rewards, old, reference)
        returns = None
        if self.values:
            advantages = [self.gae(*pair) for pair in zip(token_rewards, old_values, strict=True)]
            returns = [
                (torch.tensor(a, dtype=torch.float64) + v).tolist() for a, v in zip(advantages, old_values, strict=True)
            ]
            to_come = torch.tensor([sum(own[t:]) for own in token_rewards for t in range(len(own))])
            found["explained"] = float(1 - (to_come - torch.cat(old_values)).var() / to_come.var())
        else:
            advantages = self.leave_one_out(token_rewards)
        if s.normalise_advantages:
            flat = [a for own in advantages for a in own]
            deviation = math.sqrt(mean([(a - mean(flat)) ** 2 for a in flat]))
            advantages = [[(a - mean(flat)) / deviation for a in own] for own in advantages]
        found |= self.learn(number, texts, old, reference, advantages, old_values, returns)
        if s.target_kl:
            self.beta *= 1 + 0.1 * min(0.2, max(-0.2, found["kl"] / s.target_kl - 1))
        return found

    def draw(self, seed: int, tokenizer):
        s = self.settings
        n, rows, generator = s.batch_size // s.samples_per_prompt, [], torch.Generator().manual_seed(seed)
        while len(rows) < n:
            rows += torch.randperm(len(PROMPTS), generator=generator).tolist()
        drawn = [PROMPTS[row] for row in rows[:n] for _ in range(s.samples_per_prompt)]
        options = {"max_new_tokens": s.max_new_tokens, "batch_size": s.batch_size, "every_token": True}
        return sample(copy.deepcopy(self.policy).float(), tokenizer, drawn, seed=seed, **options)

    def token_rewards(self, rewards, old, reference) -> list[list[float]]:
        beta = self.beta if self.settings.kl_in == "reward" else 0.0
        found = []
        for r, p, q in zip(rewards, old, reference, strict=True):
            own = [-beta * float(d) for d in p - q]
            found.append([*own[:-1], own[-1] + r])
        if self.settings.normalise_rewards:
            deviation = statistics.stdev(map(sum, found))
            found = [[r / deviation for r in own] for own in found]
        return found

    def gae(self, token_rewards: list[float], values: Tensor) -> list[float]:
        advantages, later, value_later = [], 0.0, 0.0
        for r, value in zip(reversed(token_rewards), reversed(values.tolist()), strict=True):
            later = r + value_later - value + self.settings.gae_lambda * later
            value_later = value
            advantages.insert(0, later)
        return advantages

    def leave_one_out(self, token_rewards: list[list[float]]) -> list[list[float]]:
        k, totals, found = self.settings.samples_per_prompt, list(map(sum, token_rewards)), []
        for row, own in enumerate(token_rewards):
            first = row // k * k
            others = mean([totals[other] for other in range(first, first + k) if other != row])
            found.append([totals[row] - others] * len(own))
        return found

    def learn(self, number, texts, old, reference, advantages, old_values, returns) -> dict[str, float]:
        s = self.settings
        generator = torch.Generator().manual_seed(s.seed + 1_000_003 * number)
        seen = []
        for _ in range(s.epochs):
            order = torch.randperm(len(texts), generator=generator).tolist()
            size = len(texts) // s.minibatches
            for start in range(0, len(texts), size):
                rows = order[start : start + size]
                terms = {"policy_loss": [], "clipped": [], "kl_loss": [], "value_loss": []}
                for row in rows:
                    values = self.values_of(*texts[row]) if self.values else None
                    for t, logp in enumerate(self.logps(self.policy, *texts[row])):
                        ratio, a = (logp - old[row][t]).exp(), advantages[row][t]
                        bound = ratio.clamp(1 - s.clip_range, 1 + s.clip_range)
                        terms["policy_loss"].append(-min(ratio * a, bound * a))
                        terms["clipped"].append((abs(ratio - 1) > s.clip_range).double())
                        if s.kl_in == "loss":
                            d = reference[row][t] - logp
                            terms["kl_loss"].append(d.exp() - d - 1)
                        if values is not None:
                            before, target = old_values[row][t], returns[row][t]
                            near = before + (values[t] - before).clamp(-s.value_clip_range, s.value_clip_range)
                            terms["value_loss"].append(max((values[t] - target) ** 2, (near - target) ** 2) / 2)
                means = {name: torch.stack(parts).mean() for name, parts in terms.items() if parts}
                total = means["policy_loss"] + self.beta * means.get("kl_loss", 0) + means.get("value_loss", 0)
                norms = self.move(total, number)
                seen.append({name: value.item() for name, value in means.items()} | norms)
        return {name: mean([each[name] for each in seen]) for name in seen[0]}

    def move(self, total: Tensor, number: int) -> dict[str, float]:
        s = self.settings
        share = 1 - (1 - s.final_lr) * (number - 1) / (s.steps - 1)
        norms = {}
        for *_, optimizer in self.trained:
            optimizer.zero_grad()
        total.backward()
        for name, parameters, rate, optimizer in self.trained:
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in parameters))
            for p in parameters:
                p.grad *= min(1, s.clip / (norm + 1e-6))  # all may be clipped, and the norm 0
            optimizer.param_groups[0]["lr"] = rate * share
            optimizer.step()
            norms[f"{name}_grad_norm"] = norm
        return norms

    def values_of(self, ids: list[int], start: int) -> Tensor:
        """Before each token of the completion is drawn."""
        hidden = self.values.transformer(input_ids=torch.tensor([ids])).last_hidden_state[0]
        return (hidden @ self.values.linear.weight[0] + self.values.linear.bias[0])[start - 1 : -1]

    @staticmethod
    def logps(model, ids: list[int], start: int) -> Tensor:
        rows = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        return torch.stack([rows[place - 1, ids[place]] for place in range(start, len(ids))])


CASES = {
    "PPO": ("ppo", {"clip_range": 0.1, "clip": 0.5}),
    "PPO, long": ("ppo", {"epochs": 3, "minibatches": 4, "gae_lambda": 0.6, "final_lr": 1.0, "seed": 5}),
    "PPO, KL in the loss": ("ppo", {"kl_in": "loss", "target_kl": 0.23, "normalise_advantages": False, "seed": 3}),
    "PPO, rewards normalised": (
        "ppo",
        {"normalise_rewards": True, "target_kl": 0.3, "samples_per_prompt": 2, "seed": 1},
    ),
    "PPO, nothing clipped": ("ppo", {"clip": math.inf, "clip_range": math.inf, "value_clip_range": math.inf}),
    "RLOO": ("rloo", {"samples_per_prompt": 4, "clip_range": 0.1, "epochs": 2}),
    "RLOO, normalised": ("rloo", {"samples_per_prompt": 2, "normalise_advantages": True, "minibatches": 2}),
    "RLOO, KL in the loss": ("rloo", {"kl_in": "loss", "normalise_rewards": True, "target_kl": 0.05, "seed": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_steps_by_hand(case, model, tokenizer):
    """Oracle: `ByHand`, three steps; at the first one policy and reference are the same."""
    method, options = CASES[case]
    kind = PPOSettings if method == "ppo" else RLOOSettings
    value_model = opinionated_head() if method == "ppo" else None
    slow = ByHand(model, value_model, kind(**SHORT | {"steps": 3} | options), BETA)
    expected = [slow.step(number, tokenizer) for number in (1, 2, 3)]
    log = go(model, tokenizer, method=method, value_model=value_model, steps=3, **options)
    for row, by_hand in zip(log, expected, strict=True):
        assert row.keys() - {"step", "lr", "tokens_s"} == by_hand.keys()
        for name, value in by_hand.items():
            assert row[name] == pytest.approx(value, rel=5e-4, abs=5e-5), name
    assert_same_weights(model, slow.policy, atol=1e-5)
    if value_model:
        assert_same_weights(value_model, slow.values, atol=5e-5)
    assert log[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(log[2]["kl"]) > 0.05
    if kind(**options).target_kl:  # near enough to the KL that the coefficient follows the error
        assert log[2]["kl_coef"] / log[1]["kl_coef"] not in (pytest.approx(0.98), pytest.approx(1.02))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_three_steps_of_trls_rloo(model, tokenizer, tmp_path, monkeypatch):
    """Oracle: TRL 1.16's RLOOTrainer with the completions that we draw, its AdamW with our schedule.

    TRL takes the mean over completions, we over their tokens: gradients of one direction, and cut to one length the
    same. Its first steps' ratios are one, so that its clipping of whole completions, not of tokens, does nothing.
    """
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trl = pytest.importorskip("trl", minversion="1.16")
    datasets = pytest.importorskip("datasets")
    prompts, drawn = ["a b", "c d", "e f"], []  # of one length, as TRL pads on the left without position_ids

    def record(samples):
        drawn.append(samples)
        return reward(samples)

    start = copy.deepcopy(model)
    save_model(model, tokenizer, tmp_path / "model", card="")
    peer, _ = load_model(tmp_path / "model")  # from where TRL reads the reference
    options = {"steps": 3, "batch_size": 12, "samples_per_prompt": 4, "clip": 1e-3}
    go(model, tokenizer, prompts=prompts, reward=record, method="rloo", **options)
    drawn = iter(drawn[1:])

    class Trainer(trl.RLOOTrainer):
        def _generate_single_turn(self, prompt_ids, *_):
            left = list(next(drawn).sequences.input_ids)
            return [left.pop([ids[:2] for ids in left].index(head))[2:] for head in prompt_ids]

    def judge(prompts, completion_ids, **_):
        heads = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        ids = [head + tail for head, tail in zip(heads, completion_ids, strict=True)]
        return reward(SimpleNamespace(sequences=Sequences(ids, [2] * len(ids)))).tolist()

    optimizer = torch.optim.AdamW(peer.parameters(), lr=SHORT["lr"], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - 0.9 * done / 2)
    config = trl.RLOOConfig(
        output_dir=str(tmp_path),
        beta=BETA,
        max_steps=3,
        per_device_train_batch_size=12,
        num_generations=4,
        max_grad_norm=options["clip"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    dataset = datasets.Dataset.from_dict({"prompt": prompts})
    trainer = Trainer(peer, judge, config, dataset, processing_class=tokenizer, optimizers=(optimizer, schedule))
    trainer.train()
    moved = (weights(model)["transformer.wte.weight"] - weights(start)["transformer.wte.weight"]).abs().max()
    assert moved > 5e-5
    assert_same_weights(model, peer, atol=2e-6)
