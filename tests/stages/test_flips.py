"""Every switch of `nplus details` is connected: flipped, the stage that it governs ends otherwise.

Both sides run into one directory, so only what depends on the key runs twice.
"""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXForCausalLM

from nplus.config import ModelConfig, SamplingConfig
from nplus.config.load import load_config
from nplus.config.profiles import PROFILES
from nplus.details import details
from nplus.engines.kv import KVEngine
from nplus.models.files import load_causal_lm
from nplus.models.lm import response_logprobs
from nplus.runs import content_hash
from nplus.stages import evaluate as evaluate_stage
from nplus.stages.drawing import Drawn

SWITCHED = {entry.id: entry for entry in details() if entry.key is not None}
STAGE = {"tokenizer": "sft", "model": "sft", "seed": "sft"}
"""The stage that shows a key, by its component; otherwise the component is the stage."""
STAGE_OF = {"A4": "sample", "A5": "sft", "A6": "sft"}
FILES = ("data={file}", "label.kind=contrast", "evaluate.judge=reward", "sample=null")
LOCAL = ("model.model_name_or_path={model}", "model.size=null", "tokenizer.vocab_size=null")
ENDS = (
    "ppo.sampling.temperature=30",  # so that several responses meet their EOS
    "ppo.batch_size=48",
    "ppo.total_episodes=48",
    "ppo.micro_batch_size=8",
)
GIVEN = {
    "A2": FILES,
    "A3": ("data.max_query_tokens=100", "data.overlong=drop"),
    "A5": (*FILES, *LOCAL, "pretrain=null", 'data.template="POST: {{post}}\\n\\nTL;DR:\\n"'),
    "A8": ("data.max_response_tokens=36", "data.overlong=drop"),
    "C3": ("evaluate.max_rows=3",),  # a verdict of its own: both sides are drawn by the test
    "D9": ("dpo.beta=0.1", "dpo.batch.batch_size=8", "dpo.batch.micro_batch_size=4"),
    "E2": ("ppo.total_episodes=36",),  # one pass is 32 prompts
    "E7": (*ENDS, "ppo.sampling.stop=length"),
    "F2": ENDS,
    "F4": (*ENDS, "ppo.value_mask=response", "ppo.lam=0.1"),
    "G1": ("ppo.micro_batch_size=2",),
    "G2": ("ppo.optim.learning_rate=1e-2",),
    "G3": ("ppo.optim.learning_rate=1e-2", "ppo.cliprange_value=0.001"),
    "G4": (*ENDS, "ppo.micro_batch_size=2"),
    "H1": ("evaluate.temperatures=[0.01]",),
}
"""Settings of both sides under which the switch shows in so small a run."""
ROUNDING = ("E6",)
"""Sampler and trainer agree but for the order of their sums."""
ECHOES = ("judge", "split", "temperatures", "agreement")
"""Results that repeat a setting, or are there by the judge's name alone."""
TIMES = ("seconds", "tokens_per_second", "time")


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def observed(where):
    """All that a stage leaves: results, journal and artefacts, without what a clock says."""
    kept = {
        path.name: content_hash(path)
        for path in where.path.iterdir()
        if path.name in ("model", "critic", "data") or path.suffix == ".jsonl"
        if path.name != "journal.jsonl"
    }
    journal = [without_times(row) for row in where.journal_rows()]
    told = {k: v for k, v in where.manifest().results.items() if k not in ECHOES}
    results = without_times(json.loads(json.dumps(told)))
    return results, journal, kept


def numbers(tree):
    """Every number of a tree, and the tree with a mark in each one's place."""
    if isinstance(tree, dict):
        parts = {key: numbers(value) for key, value in tree.items()}
        return [n for ns, _ in parts.values() for n in ns], {k: t for k, (_, t) in parts.items()}
    if isinstance(tree, list | tuple):
        parts = [numbers(value) for value in tree]
        return [n for ns, _ in parts for n in ns], [t for _, t in parts]
    if isinstance(tree, float) and math.isfinite(tree):
        return [tree], "number"
    return [], tree


def ends_otherwise(one, other, *, rounding):
    """Whether two ends of a stage differ; unless `rounding`, by more than the order of sums."""
    if rounding or not one[1]:  # without a journal the files are the result
        return one != other
    (a, tree_a), (b, tree_b) = (numbers(list(side[:2])) for side in (one, other))
    return tree_a != tree_b or not np.allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def begun(finished, tmp_path_factory):
    """A copy of the finished run to go on from."""
    path = tmp_path_factory.mktemp("flips") / "run"
    shutil.copytree(finished.path, path)
    return path


@pytest.fixture(scope="module")
def posts(tmp_path_factory):
    """A folder of posts and summaries, with a split for the toy to pretrain on."""
    path = tmp_path_factory.mktemp("posts")
    things = ("bike", "lamp", "cat", "car", "boat", "hat", "pan", "clock")
    rows = [
        {"id": f"p{i}", "post": f"My {thing} broke on day {i}. What now?", "title": f"The {thing}"}
        | {"subreddit": "advice", "summary": f"The {thing} broke; what now?"}
        for i in range(6)
        for thing in things
    ]
    rows = [{**row, "id": f"{row['id']}-{n}"} for n, row in enumerate(rows)]
    for name in ("train", "pretrain"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return path


@pytest.fixture
def inflected(monkeypatch):
    """The policies answer with the reference, every word in another form."""

    def draw(model, prompts, *args, **kwargs):
        words = [" ".join(f"{word}s" for word in p.response.split()) for p in prompts]
        return [Drawn(text, (5, 6, 0), True) for text in words]

    monkeypatch.setattr(evaluate_stage, "draw", draw)


@pytest.mark.parametrize("id", [id for id in SWITCHED if id not in ("B6", "E4")])
def test_flipping_the_key_changes_the_result(id, begun, road_config, drive, posts, request):
    if id == "C3":  # so young a policy writes no word that stems to a reference's
        request.getfixturevalue("inflected")
    entry = SWITCHED[id]
    component = entry.key.partition(".")[0]
    stage = STAGE_OF.get(id) or STAGE.get(component, component)
    model = next(begun.glob("pretrain-*/model"))
    given = [text.format(file=posts, model=model) for text in GIVEN.get(id, ())]
    sides = []
    for sets in (given, [*given, *entry.flip]):
        config = load_config(road_config(), sets=sets)
        root = drive(config, begun, until=stage)
        sides.append(observed(root.stages()[stage]))
    assert ends_otherwise(*sides, rounding=id in ROUNDING)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_trains(profile, begun, road_config, drive):
    sets = [*ENDS, "ppo.value_learning_rate=1e-4", f"ppo.profile={profile}"]
    root = drive(load_config(road_config(), sets=sets), begun, until="ppo")
    (last,) = (row["metrics"] for row in root.stages()["ppo"].journal_rows())
    assert all(math.isfinite(value) for value in last.values())
    assert last["objective/kl"] == pytest.approx(0.0, abs=1e-3)
    assert last["first_minibatch/ratio"] == pytest.approx(1.0, abs=1e-5)


def test_positions_of_an_absolute_position_model(tmp_path):
    # B6: with rotary embeddings slots and real tokens differ by rounding alone.
    torch.manual_seed(0)
    tiny = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    GPT2LMHeadModel(tiny).save_pretrained(tmp_path)
    tokens_BT = torch.arange(2, 14)[None]
    mask_BT = torch.arange(12)[None] >= 4
    found = {}
    for positions in ("real", "slots"):
        cfg = ModelConfig(model_name_or_path=str(tmp_path), positions=positions)
        model = load_causal_lm(cfg).eval()
        found[positions], _ = response_logprobs(model, tokens_BT, mask_BT, 5, temperature=None)
        alone, _ = response_logprobs(model, tokens_BT[:, 4:], mask_BT[:, 4:], 5, temperature=None)
        same = torch.allclose(found[positions], alone, atol=1e-5)
        assert same == (positions == "real")
    assert not torch.allclose(found["real"], found["slots"], atol=1e-3)


def test_sampling_to_the_full_length(tiny_causal, prompts_of_lengths, uniforms_for):
    # E4: what follows EOS is sampled and kept; real tokens are the same.
    model: GPTNeoXForCausalLM = tiny_causal(spread=0.02)
    prompts = prompts_of_lengths([3, 5, 4, 6])
    noise_BR = uniforms_for(prompts, 40)
    engine = KVEngine(model, eos_id=0, pad_id=1)
    by_stop = {
        stop: engine.generate(
            prompts, SamplingConfig(response_length=40, temperature=1.0, stop=stop), noise_BR
        )
        for stop in ("eos", "length")
    }
    short, full = by_stop["eos"], by_stop["length"]
    mask_BR = short.response_mask_BR
    assert torch.equal(mask_BR, full.response_mask_BR)
    assert not mask_BR.all()
    assert torch.equal(short.tokens_BR[mask_BR], full.tokens_BR[mask_BR])
    assert (short.tokens_BR[~mask_BR] == 1).all()
    assert not (full.tokens_BR[~mask_BR] == 1).all()
