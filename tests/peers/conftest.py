"""Differential tests: the same inputs through nplus and through an installed peer.

They run by `make test-peers` alone, which makes an environment for each peer beside `.venv`. A
probe of ours runs inside it, imports the peer and writes tensors; the test computes the same with
nplus in this environment. What was compared is printed at the end and written beside the
environments.
"""

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPTNeoXForCausalLM

from nplus.data.tokens import train_bpe
from nplus.models.files import save_causal_lm
from nplus.models.lm import set_dropout
from nplus.models.scalar import ScalarModel
from nplus.models.toy import toy_config

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv-peers"
VOCAB, EOS, PAD = 300, 0, 1
SECONDS = 900


def pytest_ignore_collect(config):
    """Only `-m peers` collects these tests: they need environments of their own."""
    return None if "peers" in (config.getoption("markexpr") or "") else True


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("peers")


# --- what was compared ----------------------------------------------------------------------------


@dataclass
class Row:
    """One line of the table: the largest difference over `cases` comparisons."""

    quantity: str
    peer: str
    limit: str
    difference: float
    cases: int = 1


@dataclass
class Ledger:
    """Compares, fails where the comparison does, and remembers."""

    rows: dict[tuple[str, str], Row] = field(default_factory=dict)

    def same(self, quantity, peer, ours, theirs, *, bound=1e-6):
        """Equal shape, and no element further apart than `bound`."""
        found = _largest(ours, theirs)
        self._note(quantity, peer, f"< {bound:.0e}", found, max)
        assert found < bound, f"{quantity}: nplus and {peer} differ by {found:.3e}"

    def apart(self, quantity, peer, ours, theirs, *, least=1e-3):
        """A difference that is meant: some element is at least `least` apart."""
        found = _largest(ours, theirs)
        self._note(quantity, peer, f"> {least:.0e}", found, min)
        assert found > least, f"{quantity}: nplus and {peer} should differ, not by {found:.3e}"

    def _note(self, quantity, peer, limit, found, worst):
        row = self.rows.get((quantity, peer))
        if row is None:
            self.rows[quantity, peer] = Row(quantity, peer, limit, found)
        else:
            row.difference, row.cases = worst(row.difference, found), row.cases + 1

    def table(self):
        head = ("quantity", "peer", "largest difference", "bound", "cases")
        lines = [head] + [
            (r.quantity, r.peer, f"{r.difference:.2e}", r.limit, str(r.cases))
            for r in self.rows.values()
        ]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


def _largest(ours, theirs):
    ours, theirs = (torch.as_tensor(x, dtype=torch.float64) for x in (ours, theirs))
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs().max()
    assert torch.isfinite(difference)
    return float(difference)


LEDGER = pytest.StashKey[Ledger]()


def pytest_configure(config):
    config.stash[LEDGER] = Ledger()


@pytest.fixture(scope="session")
def ledger(pytestconfig):
    """`same(quantity, peer, ours, theirs, bound=1e-6)` and `apart(...)`, noted for the table."""
    return pytestconfig.stash[LEDGER]


def pytest_terminal_summary(terminalreporter, config):
    ledger = config.stash[LEDGER]
    if ledger.rows:
        table = ledger.table()
        (ENVIRONMENTS / "differences.txt").write_text(table + "\n")
        terminalreporter.write_sep("=", "nplus against installed peers (float64)")
        terminalreporter.write_line(table)


# --- the peers ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def run_probe(tmp_path_factory):
    """`run_probe(environment, probe, spec)`: `case -> tensors`, and what the probe logged."""

    def run(environment, probe, spec):
        python = ENVIRONMENTS / environment / "bin" / "python"
        assert python.exists(), f"{python} is missing: `make test-peers` makes it"
        out = tmp_path_factory.mktemp(probe)
        (out / "spec.json").write_text(json.dumps(spec))
        done = subprocess.run(
            [python, Path(__file__).parent / "probes" / f"{probe}.py", out / "spec.json", out],
            env=os.environ
            | {
                "HF_HUB_OFFLINE": "1",
                "HF_HOME": str(out / "hub"),
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
                "TRL_EXPERIMENTAL_SILENCE": "1",
            },
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{probe} in {environment}:\n{done.stderr[-4000:]}"
        tensors = {file.stem: load_file(file) for file in out.glob("*.safetensors")}
        assert set(tensors) == {case["name"] for case in spec["cases"]}
        return tensors, json.loads((out / "logs.json").read_text())

    return run


# --- models and tokenizer, in float64, on disk for both sides -------------------------------------


def _causal(seed):
    config = toy_config("0.3M", vocab_size=VOCAB, eos_id=EOS, pad_id=PAD)
    config.initializer_range = 0.15
    config.tie_word_embeddings = False
    torch.manual_seed(seed)
    return GPTNeoXForCausalLM(config).double()


def _nudged(model, seed, size):
    """The same network a little moved, so that KL, margins and value errors are not 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype), alpha=size)
    return model


@pytest.fixture(scope="session")
def model_dirs(tmp_path_factory):
    """Directories of `policy`, `reference`, `reward` and `critic`: tiny, float64, all different."""
    root = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng(devices=[]):
        policy, trunk = _causal(0), _causal(1)
        save_causal_lm(policy, root / "policy")
        save_causal_lm(_nudged(policy, 2, 0.01), root / "reference")
        reward = ScalarModel.from_causal(trunk, pad_id=PAD, seed=3)
    reward.save(root / "reward")
    _nudged(reward.network, 4, 0.01)
    reward.save(root / "critic")
    return {name: str(root / name) for name in ("policy", "reference", "reward", "critic")}


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    """A byte-level BPE of 300 tokens, EOS 0 and PAD 1."""
    path = tmp_path_factory.mktemp("tokenizer")
    codec = train_bpe(["the dog and the rent and the early train, TL;DR: the drums"] * 3, VOCAB)
    assert (codec.eos_id, codec.pad_id) == (EOS, PAD)
    codec.save(path)
    return str(path)


@pytest.fixture(scope="session")
def load_policy():
    """`load_policy(path)`: a causal model as nplus trains it, in float64, without dropout."""

    def load(path):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
        set_dropout(model, 0.0)
        return model.eval()

    return load
