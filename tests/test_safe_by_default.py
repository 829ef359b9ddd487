"""Safe by default: no pickle, no code that comes with a model, no key in anything written."""

import ast
import io
import json
import shutil
import sys
import traceback
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console

import nplus
from nplus.config import JudgeConfig, ModelConfig
from nplus.data.tokens import Codec, train_bpe
from nplus.engines.api import NO_KEY, chat_client, redacted
from nplus.evaluation.comparators import LLMJudge
from nplus.models.files import load_causal_lm, require_loadable, save_causal_lm
from nplus.models.scalar import ScalarModel
from nplus.models.toy import build_toy
from nplus.records import Comparison, InputError
from nplus.runs import Pipeline, RunRoot

SRC = Path(nplus.__file__).parent
PARTNER = "distributed/partner.py"
"""Pickles go through its pipe, from memory to memory of our own processes, and through no file."""
LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

# --- pickles ------------------------------------------------------------------------------------


def pickles(source: str) -> list[str]:
    """What of a module reads or writes a pickle, or runs text as code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found += [name for name in names if name.split(".")[0] in LOADERS]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            risky = ("torch.load", "torch.save", "torch.jit.load", "eval", "exec", "yaml.load")
            loader = any(k.arg == "Loader" for k in node.keywords)
            if called in risky and not (called == "yaml.load" and loader):
                found.append(called)
            if called.endswith("np.load") or called == "numpy.load":
                found.append(called)
            found += [f"{k.arg}=True" for k in node.keywords if _is_on(k)]
    return found


def _is_on(keyword: ast.keyword) -> bool:
    risky = keyword.arg in ("allow_pickle", "trust_remote_code", "shell")
    return risky and isinstance(keyword.value, ast.Constant) and keyword.value.value is True


def test_no_module_reads_a_pickle():
    found = {
        file.relative_to(SRC).as_posix(): what
        for file in SRC.rglob("*.py")
        if (what := pickles(file.read_text(encoding="utf-8")))
    }
    assert set(found) == {PARTNER}
    assert set(found[PARTNER]) == {"pickle"}
    text = (SRC / PARTNER).read_text(encoding="utf-8")
    assert "pickle.load(" not in text
    assert "open(" not in text


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import load",
        "import torch\ntorch.load('x')",
        "torch.save(x, 'y')",
        "np.load('x')",
        "f(allow_pickle=True)",
        "f(trust_remote_code=True)",
        "yaml.load(text)",
        "eval(text)",
    ],
)
def test_a_pickle_would_be_found(source):
    assert pickles(source)


@pytest.fixture(scope="module")
def codec():
    return train_bpe(["a few words of text"], 300)


@pytest.fixture
def model(tmp_path, codec):
    """A tiny model's directory."""
    network = build_toy(
        "0.3M", vocab_size=codec.size, eos_id=codec.eos_id, pad_id=codec.pad_id, seed=1
    )
    save_causal_lm(network, tmp_path / "model", codec.tokenizer)
    return tmp_path / "model"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, where):
        self.where = where

    def __reduce__(self):
        return (open, (str(self.where), "w"))


def test_a_pickle_is_not_opened_even_where_pickles_are_asked_for(model, tmp_path):
    import pickle

    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "went off")))
    for load in (load_causal_lm, require_loadable):
        with pytest.raises(InputError, match=r"pytorch_model\.bin.*model\.allow_pickle=true"):
            load(ModelConfig(model_name_or_path=str(model)))
        # asked for, it is read in the mode that builds tensors and calls nothing
        with pytest.raises(InputError, match="cannot load this model"):
            load(ModelConfig(model_name_or_path=str(model), allow_pickle=True))
    with pytest.raises(InputError, match="pickle"):
        ScalarModel.load(model)
    assert not (tmp_path / "went off").exists()
    assert ModelConfig().allow_pickle is False


# --- code that comes with a model ---------------------------------------------------------------

CODE = """
from pathlib import Path

Path({where!r}).write_text("ran", encoding="utf-8")

from transformers import GPTNeoXConfig, GPTNeoXForCausalLM


class OddConfig(GPTNeoXConfig):
    model_type = "odd"


class OddModel(GPTNeoXForCausalLM):
    config_class = OddConfig
"""


@pytest.fixture
def odd_model(model, tmp_path, monkeypatch):
    """A model that brings code of its own, which writes a file when it runs."""
    from transformers import dynamic_module_utils

    for name in ("HF_MODULES_CACHE",):
        monkeypatch.setattr(dynamic_module_utils, name, str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = model / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"model_type": "odd", "architectures": ["OddModel"]}
    config["auto_map"] = {
        "AutoConfig": "odd.OddConfig",
        "AutoModelForCausalLM": "odd.OddModel",
        "AutoModelForSequenceClassification": "odd.OddModel",
    }
    path.write_text(json.dumps(config), encoding="utf-8")
    (model / "odd.py").write_text(CODE.format(where=str(tmp_path / "ran")), encoding="utf-8")
    return model


def test_code_that_comes_with_a_model_does_not_run(odd_model, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("it asks"))
    cfg = ModelConfig(model_name_or_path=str(odd_model))
    for load in (load_causal_lm, require_loadable):
        with pytest.raises(InputError, match=r"code of its own.*model\.trust_remote_code=true"):
            load(cfg)
    with pytest.raises(InputError, match="cannot load this model"):
        ScalarModel.load(odd_model)
    assert not (tmp_path / "ran").exists()


def test_it_runs_where_that_is_asked_for(odd_model, tmp_path):
    require_loadable(ModelConfig(model_name_or_path=str(odd_model), trust_remote_code=True))
    assert (tmp_path / "ran").read_text(encoding="utf-8") == "ran"


def test_code_that_comes_with_a_tokenizer_does_not_run(model, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("it asks"))
    path = model / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"tokenizer_class": "OddTokenizer"}
    config["auto_map"] = {"AutoTokenizer": ["odd.OddTokenizer", "odd.OddTokenizer"]}
    path.write_text(json.dumps(config), encoding="utf-8")
    (model / "odd.py").write_text(CODE.format(where=str(tmp_path / "ran")), encoding="utf-8")
    try:
        Codec.load(model)
    except InputError as error:
        assert "trust_remote_code" in str(error)  # noqa: PT017
    assert not (tmp_path / "ran").exists()


# --- the judge's key ----------------------------------------------------------------------------

KEY = "sk-Zq9/odd+key=7'x%20"


class Status(Exception):
    """As openai's errors of the endpoint's."""

    def __init__(self, told, status):
        super().__init__(told)
        self.status_code, self.code = status, None
        self.response = SimpleNamespace(headers={})


class Connection(Exception):
    """As openai's errors of the line."""


def play(monkeypatch, answer):
    """An `openai` whose endpoint answers as `answer(key)` does."""

    class OpenAI:
        def __init__(self, *, base_url, api_key, timeout, max_retries):
            def create(**asked):
                found = answer(api_key)
                if isinstance(found, Exception):
                    raise found
                message = SimpleNamespace(content=found)
                return SimpleNamespace(choices=[SimpleNamespace(message=message)])

            self.chat = SimpleNamespace(completions=SimpleNamespace(create=create))

    module = ModuleType("openai")
    module.OpenAI, module.APIConnectionError, module.APIStatusError = OpenAI, Connection, Status
    monkeypatch.setitem(sys.modules, "openai", module)


def echoes(key):
    """A connection error whose cause shows the header that it could not send."""
    error = Connection("Connection error.")
    error.__cause__ = ValueError(f"Illegal header value b'Bearer {key}'")
    return error


@pytest.mark.parametrize(
    ("answer", "fails"),
    [
        (lambda key: f"Your key is {key}.\nBetter: A", False),
        (lambda key: f"{json.dumps(key)} {key!r}\nBetter: B", False),
        (lambda key: Status(f"Error code: 401 - wrong key {key}", 401), True),
        (lambda key: Status(f"Error code: 500 - {json.dumps({'auth': key})}", 500), True),
        (lambda key: Status(f"Error code: 400 - ?api_key={key!r}", 400), True),
        (echoes, True),
        (lambda key: "Better: A", False),
    ],
    ids=["reply", "spelled reply", "refusal", "server error", "bad request", "no line", "plain"],
)
def test_the_key_is_in_nothing_that_is_written(tmp_path, monkeypatch, capfd, answer, fails):
    play(monkeypatch, answer)
    monkeypatch.setenv("ODD_KEY", KEY)
    monkeypatch.setattr("nplus.engines.api.FIRST_DELAY", 0.0)
    config = JudgeConfig(model="m", base_url="http://127.0.0.1:1/v1", api_key_env="ODD_KEY")
    config = config.model_copy(update={"retries": 1})
    root = RunRoot(tmp_path / "run")
    console = Console(file=io.StringIO())

    def judge(where):
        chat = chat_client(config, where.replies)
        rows = [Comparison(f"t{n}", f"POST {n}", ("a", "b"), ("x", "y"), 0) for n in range(3)]
        found = LLMJudge(chat.ask, each=chat.each).compare(rows)
        console.print([verdict.replies for verdict in found])
        where.event("judged", config=config.model_dump(mode="json"))
        return {"replies": [verdict.replies for verdict in found]}

    pipeline = Pipeline(root, "toy", {"judge": config.model_dump(mode="json")}, seed=1)
    told = ""
    try:
        pipeline.run("evaluate", config.model_dump(mode="json"), judge)
    except InputError as error:
        told = "".join(traceback.format_exception(error))
    assert bool(told) is fails
    printed = "".join(capfd.readouterr()) + console.file.getvalue()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert fails or {"manifest.json", "journal.jsonl", "replies.jsonl"} <= {p.name for p in files}
    for text in (told, printed, *(path.read_text(encoding="utf-8") for path in files)):
        for form in (KEY, KEY[3:], repr(KEY)[1:-1], json.dumps(KEY)[1:-1], KEY[3:-4]):
            assert form not in text
    assert "***" in told + "".join(p.read_text() for p in files) or answer(KEY) == "Better: A"


def test_a_key_that_no_header_can_carry_is_refused_unseen(monkeypatch, tmp_path):
    for odd in ("two words", "line\nbreak", "kéy", "tab\tkey"):
        monkeypatch.setenv("ODD_KEY", odd)
        with pytest.raises(
            InputError, match="ODD_KEY: this environment variable holds no key"
        ) as e:
            chat_client(JudgeConfig(api_key_env="ODD_KEY"), tmp_path / "replies.jsonl")
        assert odd not in str(e.value)


def test_replies_of_a_judge_that_fails_are_kept(tmp_path, monkeypatch):
    """The message says so; another run must find them."""
    count = []

    def answer(key):
        count.append(key)
        return "Better: A" if len(count) < 3 else Status("no more", 401)

    play(monkeypatch, answer)
    config = JudgeConfig(model="m", api_key_env=None, max_parallel=1)

    def judge(where):
        chat = chat_client(config, where.replies)
        return {"replies": chat.each(chat.ask, [f"q{n}" for n in range(4)])}

    for _ in range(2):
        pipeline = Pipeline(RunRoot(tmp_path / "run"), "toy", {}, seed=1)
        with pytest.raises(InputError, match="no more"):
            pipeline.run("evaluate", {}, judge)
        replies = next((tmp_path / "run").glob("evaluate-*")) / "replies.jsonl"
        assert len(replies.read_text(encoding="utf-8").splitlines()) == 2


def test_nothing_is_redacted_where_there_is_no_key():
    assert redacted(f"{NO_KEY} as it is", NO_KEY) == f"{NO_KEY} as it is"


def test_a_run_is_made_whole_by_a_copy(tmp_path, model):
    """No path in a model's directory leads elsewhere: a copy loads without the first."""
    shutil.copytree(model, tmp_path / "copy")
    shutil.rmtree(model)
    require_loadable(ModelConfig(model_name_or_path=str(tmp_path / "copy")))
