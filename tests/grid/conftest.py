"""A road without training: the stages, keys and files of a run, results by a rule."""

import pytest

from nplus.records import Judgement, Margin, write_records
from nplus.runs import Pipeline, RunRoot

POSTS = 10
PARAMETERS = {"0.3M": 276_000, "1M": 1_055_488, "4M": 3_682_304}


class Road:
    """Runs a config in no time.

    PPO wins against the reference on the first `wins(config)` of ten posts, ties on the next one
    and loses the others; SFT wins on two and ties on one. `fail(config, stage)` may raise.
    """

    def __init__(self):
        self.ran = []
        """`(stage, seed)` of every stage that did work."""
        self.wins = lambda config: 5
        self.fail = lambda config, stage: None

    def __call__(self, config, out):
        root = RunRoot(out)
        root.open(config.recipe)
        pipeline = Pipeline(root, config.recipe, config.model_dump(mode="json"), config.seed)
        chain = []
        for name in ("data", "pretrain", "label", "reward", "ppo", "evaluate"):
            part = {"own": getattr(config, name).model_dump(mode="json"), "size": config.model.size}
            inputs = {earlier: earlier for earlier in chain}
            pipeline.run(name, part, self._stage(name, config), inputs=inputs)
            chain.append(name)
        return root

    def _stage(self, name, config):
        def run(where):
            self.fail(config, name)
            self.ran.append((name, config.seed))
            return getattr(self, f"_{name}", lambda where, config: {})(where, config)

        return run

    def _pretrain(self, where, config):
        return {"parameters": PARAMETERS[config.model.size], "rows": config.data.world.pretrain}

    def _evaluate(self, where, config):
        wins = {"sft": 2, "ppo": self.wins(config)}
        kl = 10 * config.ppo.kl_coef + config.seed
        write_records(where.margins, list(margins(config.seed)))
        write_records(where.judgements, [row for p in wins for row in judged(p, wins[p])])
        return {
            "split": "test",
            "temperatures": [0.01, 0.7],
            "systems": [
                {
                    "policy": p,
                    "temperature": t,
                    "split": s,
                    "tokens": 30.0 if t < 0.1 else 26.0 + config.seed,
                    "eos_rate": 0.5 if t < 0.1 else 0.9,
                    "kl": None if t < 0.1 or p == "sft" else {"value": kl if s == "test" else 99.0},
                }
                for p in wins
                for t in (0.01, 0.7)
                for s in ("test", "unseen values")
            ],
            "win_rates": [
                {"policy": p, "opponent": o, "temperature": t, "split": s, "rate": rate}
                for p in wins
                for o, t, s, rate in (
                    ("reference", 0.01, "test", (wins[p] + 0.5) / POSTS),
                    ("sft", 0.01, "test", 0.99),
                    ("reference", 0.7, "test", 0.98),
                    ("reference", 0.01, "unseen values", 0.97),
                )
            ],
            "reward_model": {
                "accuracy": {"rate": 0.7 + 0.01 * config.seed, "low": 0.6, "high": 0.8, "n": 9},
                "gold_accuracy": None,
                "bayes_accuracy": 0.83,
            },
        }


def judged(policy, wins):
    """Ten judgements of the kind that counts, and others that must not count."""

    def row(i, score, split="test", temperature=0.01, opponent="reference"):
        ours = f"{policy}@{temperature:g}"
        return Judgement(f"post{i}", split, ours, opponent, "a", "b", score, 1.0, 5, 5)

    for i in range(POSTS):
        yield row(i, 2.0 if i < wins else 1.0 if i == wins else 0.0)
        yield row(i, 9.0, temperature=0.7)
        yield row(i, 9.0, opponent="sft")
    yield row(99, 9.0, split="test_heldout")


def margins(seed):
    """Four comparisons that count, of which seed 1 gets all right, 2 the first two, and so on; and
    one of another kind."""
    for i in range(4):
        right = i < (4, 2, 1)[seed - 1]
        yield Margin(f"post{i}", ("writer", "ref"), 0.5 if right else -0.5, "test")
    yield Margin("post9", ("writer", "ref"), -9.0 * (-1) ** seed, "news")


@pytest.fixture
def road(monkeypatch):
    # what each stage asks git, the package metadata and the disk: too slow for hundreds of stages
    monkeypatch.setattr("nplus.runs.pipeline.code_version", lambda: "tested")
    monkeypatch.setattr("nplus.runs.pipeline.package_versions", dict)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    return Road()
