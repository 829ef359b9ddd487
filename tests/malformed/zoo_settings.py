"""Settings and arguments: YAML files, `--set`, options, and what contradicts itself."""

from __future__ import annotations

from zoo import Case, Make, both, folder, jsonl, link, sets, text

DEEP = "[" * 5000
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def yaml(name: str, content: str | bytes, *says: str) -> Case:
    """A config file that cannot be read."""
    return Case(
        f"yaml {name}",
        ("check", "toy", "--config", "mine.yaml"),
        ("mine.yaml", *says),
        text("mine.yaml", content),
    )


def setting(*given: str, says: tuple[str, ...], recipe: str = "toy", command: str = "run") -> Case:
    """Settings that are refused."""
    return Case(f"{command} {' '.join(given)[:60]}", (command, recipe, *sets(*given)), says)


YAML = [
    yaml("broken list", "ppo: [1\n", "line 2", "not valid YAML"),
    yaml("tab", "ppo:\n\tgamma: 1\n", "line 2"),
    yaml("a list", "- a\n", "expected keys and values"),
    yaml("a number", "7\n", "expected keys and values, found int"),
    yaml("a text", "toy\n", "found str"),
    yaml("key twice", "seed: 1\nseed: 2\n", "line 2", "'seed' is given twice"),
    yaml("not UTF-8", b"seed: \xff\xfe\n", "not UTF-8"),
    yaml("UTF-16", "seed: 1\n".encode("utf-16"), "not UTF-8"),
    yaml("NUL", b"seed: 1\x00\n", "not valid YAML"),
    yaml("control characters", b"data: \x07\x1b[31m\n", "not valid YAML"),
    yaml("two documents", "seed: 1\n---\nseed: 2\n", "not valid YAML"),
    yaml("a python object", "seed: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    yaml("an unknown tag", "seed: !thing 1\n", "line 1"),
    yaml("a list as key", "? [a, b]\n: 1\n", "a key must be a name"),
    yaml("a mapping as key", "? {a: b}\n: 1\n", "a key must be a name"),
    yaml("no such alias", "seed: *nothing\n", "undefined alias"),
    yaml("an alias of itself", "a: &a [*a]\n", "more than 10,000 values"),
    yaml("a billion laughs", LAUGHS, "more than 10,000 values"),
    yaml("endless nesting", f"seed: {DEEP}\n", "mend it"),
    yaml("no such day", "seed: 2024-13-45\n", "mend it"),
    yaml("half a character", 'data: "\\ud800"\n', "mend it"),
    yaml("a NUL in a text", 'data: "a\\0b"\n', "holds a NUL"),
    yaml("a huge number", f"seed: 1{'0' * 30}\n", "a number beyond"),
    yaml("more digits than Python reads", f"seed: {'9' * 5000}\n", "mend it"),
    yaml("not a number", "seed: !!int abc\n", "mend it"),
    yaml("bytes", "seed: !!binary '@@'\n", "seed=b''"),
    yaml("unknown key", "ppo:\n  gama: 1\n", "unknown key ppo.gama", "ppo.gamma"),
    yaml("a number as key", "1: 2\n", "unknown key 1"),
    yaml("null as key", "~: 2\n", "unknown key None"),
    yaml("a list for a component", "ppo: [1, 2]\n", "ppo=[1, 2]", "set its keys"),
    yaml("a mapping for a value", "seed: {a: 1}\n", "seed is one value"),
    yaml("another recipe's file", "recipe: real\n", "recipe='real'", "'toy'"),
    yaml("many unknown keys", "".join(f"x{n}: 1\n" for n in range(3000)), "3000 problems"),
    yaml("an endless key", f"{'k' * 900}: 1\n", "unknown key kkk"),
    yaml("an endless value", f"seed: {'v' * 90_000}\n", "seed='vvv", "..."),
    yaml("JSON cut short", '{"seed": 1, "ppo": {', "not valid YAML"),
    yaml("a path that breaks lines", 'no"pe\\nnope: 1\n', "mine.yaml"),
]


def config_file(name: str, path: str, make: Make, *says: str) -> Case:
    return Case(
        f"config file: {name}", ("run", "toy", "--config", path, "--out", "out"), says, make
    )


FILES = [
    config_file("missing", "none.yaml", folder("x"), "none.yaml", "cannot read it"),
    config_file("a directory", "dir", folder("dir"), "dir", "name a YAML file"),
    config_file("a link to nothing", "l.yaml", link("l.yaml", "gone"), "l.yaml", "No such file"),
    config_file("a link in a circle", "l", link("l", "l"), "l: cannot read it"),
    config_file("below a file", "f/c.yaml", text("f", ""), "f/c.yaml", "Not a directory"),
    config_file("a name too long", "n" * 300, folder("x"), "File name too long"),
    config_file("unreadable", "m.yaml", link("m.yaml", "/proc/self/mem"), "m.yaml", "name a YAML"),
    config_file("a NUL in its name", "a\0b", folder("x"), "null byte"),
]

SYNTAX = [
    setting("ppo.kl_coef", says=("--set ppo.kl_coef", "needs KEY=VALUE")),
    setting("=1", says=("--set =1", "needs KEY=VALUE")),
    setting("", says=("needs KEY=VALUE",)),
    setting("ppo..kl_coef=1", says=("needs KEY=VALUE",)),
    setting(".=1", says=("needs KEY=VALUE",)),
    setting("ppo. =1", says=("needs KEY=VALUE",)),
    setting("ppo=[1", says=("--set ppo=[1", "not valid YAML")),
    setting("ppo={gamma: 1", says=("not valid YAML",)),
    setting("seed='1", says=("not valid YAML",)),
    setting("seed=a: b: c", says=("not valid YAML",)),
    setting("seed={[a]: 1}", says=("a key must be a name",)),
    setting("seed=2024-02-31", says=("mend it",)),
    setting('data="\\ud800"', says=("mend it",)),
    setting("online_dpo.importance=mask", says=("unknown key", "reinforce.importance")),
    setting("reinforce.max_staleness=24", says=("24 updates", "lower it")),
    setting("ppo.klcoef=1", says=("unknown key ppo.klcoef", "ppo.kl_coef")),
    setting("online.rounds=0", says=("online.rounds=0",), command="iterate"),
    setting("online.samples=5", says=("samples=5", "multiple of 2"), command="iterate"),
    setting("online.draw=[other@1]", says=("POLICY@TEMPERATURE",), command="iterate"),
    setting("online.pairing=max_min", says=("online.pairing='max_min'",), command="iterate"),
    setting("online.scorer=ensemble", says=("reward.members",), command="iterate"),
    setting("online.pairing=knockout", says=("preference={}",), command="iterate"),
    setting(
        "online={prompts_data: none.jsonl}",
        says=("none.jsonl: no such file", "--set online.prompts_data=PATH"),
        command="iterate",
    ),
    setting("budget.mfu=0", says=("budget.mfu=0",), command="check"),
    setting("budget.gpu=tpu", says=("budget.gpu='tpu'", "a100-80gb"), command="check"),
    setting("online.train.beta=0", says=("online.train.beta=0",), command="iterate"),
    setting("scoring.terms=[{function: x}]", says=("MODULE:FUNCTION",), command="iterate"),
    setting("scoring.terms=[{weight: 2}]", says=("name one of the two",), command="iterate"),
    setting(
        "scoring.terms=[{reward_model: none}]",
        says=("scoring.terms: reward_model", "none: no such directory"),
        command="iterate",
    ),
    setting("scoring.reward_weight=0", says=("without terms",), command="iterate"),
    setting("kl_coef=1", says=("did you mean ppo.kl_coef or reinforce.kl_coef?",)),
    setting("ppo.kl_coef.x=1", says=("unknown key ppo.kl_coef.x",)),
    setting("x\ny=1", says=("unknown key",)),
    setting("x\x1b[2Jy=1", says=("unknown key",)),
    setting("ppo=7", says=("ppo=7", "a component")),
]

RANGES = [
    setting("seed=x", says=("seed='x'", "integer")),
    setting("seed=1.5", says=("seed=1.5", "integer")),
    setting("seed=-1", says=("seed=-1", "greater than or equal to 0")),
    setting("seed=null", says=("seed=None",)),
    setting("ppo.gamma=2", says=("ppo.gamma=2", "less than or equal to 1")),
    setting("ppo.gamma=.nan", says=("ppo.gamma=nan", "finite")),
    setting("ppo.kl_coef=.inf", says=("ppo.kl_coef=inf", "finite")),
    setting("ppo.kl_coef=[1]", says=("ppo.kl_coef=[1]", "number")),
    setting("ppo.batch_size=0", says=("ppo.batch_size=0",)),
    setting("ppo.optim.name=sgd", says=("ppo.optim.name='sgd'", "'adamw'")),
    setting("ppo.profile=openai", says=("ppo.profile='openai'", "nplus")),
    setting("sft.epochs=0", says=("sft.epochs=0",)),
    setting("sft.copy_gate=2", says=("sft.copy_gate=2",)),
    setting("data.max_rows=0", says=("data.max_rows=0", "greater than or equal to 1")),
    setting("data.max_rows=-3", says=("data.max_rows=-3",)),
    setting("data.valid_fraction=1", says=("data.valid_fraction=1",)),
    setting("data.world.train=0", says=("data.world.train=0",)),
    setting("data.source=web", says=("data.source='web'", "'world' or 'files'")),
    setting("tokenizer.vocab_size=3", says=("tokenizer.vocab_size=3",)),
    setting("tokenizer.vocab_size=1000000000", says=("tokenizer.vocab_size=1000000000",)),
    setting("tokenizer.pad_token=", says=("tokenizer.pad_token",)),
    setting("model.size=2M", says=("model.size='2M'", "'0.3M'")),
    setting("model.dtype=int8", says=("model.dtype='int8'",)),
    setting("model.allow_pickle=maybe", says=("model.allow_pickle='maybe'",)),
    setting("compute.threads=0", says=("compute.threads", "from 1 to 1024")),
    setting("compute.threads=999999", says=("compute.threads", "from 1 to 1024")),
    setting("compute.threads=[2]", says=("compute.threads", "from 1 to 1024")),
    setting("compute.side_by_side=2", says=("compute.side_by_side", "true, false or auto")),
    setting("evaluate.temperatures=[]", says=("evaluate.temperatures", "at least 1")),
    setting("evaluate.temperatures=[0]", says=("evaluate.temperatures[0]=0", "greater than 0")),
    setting("evaluate.temperatures=[1, 1]", says=("evaluate.temperatures", "given twice")),
    setting("evaluate.temperatures=0.7", says=("evaluate.temperatures=0.7",)),
    setting("sample.temperatures=[-1]", says=("sample.temperatures[0]=-1",)),
    setting("evaluate.temperatures=[.nan]", says=("evaluate.temperatures[0]=nan",)),
    setting("judge.max_parallel=0", says=("judge.max_parallel=0",)),
    setting("judge.timeout=0", says=("judge.timeout=0",)),
    setting("judge.retries=-1", says=("judge.retries=-1",)),
    setting("judge.model=", says=("judge.model",)),
    setting("judge.order=first", says=("judge.order='first'", "'both'")),
    setting("judge.base_url=localhost:8000", says=("judge.base_url", "http://")),
    setting("judge.base_url=ftp://x/v1", says=("judge.base_url", "http://")),
    setting("judge.base_url=http://", says=("judge.base_url", "http://")),
    setting("judge.base_url=http://h:99999999/v1", says=("judge.base_url", "http://")),
    setting("judge.base_url=http://me:word@h/v1", says=("judge.base_url", "api_key_env")),
    setting("judge.api_key_env=sk-oops", says=("judge.api_key_env", "never the key itself")),
]

CONTRADICTIONS = [
    setting("until=dpo", says=("until=dpo", "name one of")),
    setting("pretrain=null", says=("model.size=1M", "pretrain")),
    setting("sample=null", says=("label.kind=world", "label.kind=contrast")),
    setting("model.model_name_or_path=x", says=("model.size=1M", "to null")),
    setting("tokenizer.vocab_size=null", says=("set tokenizer.vocab_size",)),
    setting("model.size=null", says=("pretrain", "model.size")),
    setting("label.kind=data", says=("data.comparisons.data", "label.kind=data")),
    setting(
        "data=p.jsonl", says=("label.kind=world", "evaluate.judge=gold", "label.kind=contrast")
    ),
    setting("data.source=files", says=("data.data is empty", "--set data=posts.jsonl")),
    setting("evaluate.response_length=3", says=("evaluate.response_length=3", "raise it")),
    setting("ppo.batch_size=100", says=("micro_batch_size=32", "divides it")),
    setting("ppo.total_episodes=1", says=("total_episodes=1", "raise total_episodes")),
    setting("ppo.num_mini_batches=5", says=("num_mini_batches=5", "divides it")),
    setting("ppo.value=shared", says=("value=shared", "set value_init=zero")),
    setting("ppo.score_step=eos", says=("score_step=eos", "set value_mask=response")),
    setting("ppo.stop_token=none", says=("stop_token=none", "set sampling.stop=length")),
    setting("ppo.kl_coef=0", "ppo.kl_target=6", says=("kl_target=6.0", "kl_coef above 0")),
    setting("ppo.profile=openai-2019", "ppo.kl_coef=0", says=("kl_coef=0.0", "kl_target=null")),
    setting("reward.batch.micro_batch_size=7", says=("micro_batch_size=7", "divides it")),
    setting("dpo.loss_type=robust", says=("label_smoothing=0.1",)),
    setting("dpo.label_smoothing=0.1", "dpo.loss_type=ipo", says=("set label_smoothing=0",)),
    setting("evaluate.judge=llm", "compute.device=cpu", says=("OPENAI_API_KEY", "not set")),
    setting("ppo.gamma=2", "x=1", "seed=-1", says=("3 problems", "(1)", "ppo.gamma", "seed=-1")),
]


def usage(*command: str, says: tuple[str, ...], make: Make | None = None) -> Case:
    """Arguments and options that a command does not take."""
    name = " ".join(command)[:70].replace("\0", "NUL") or "nothing"
    return Case(f"usage: {name}", command, says, *([make] if make else []))


USAGE = [
    usage("rnu", says=("No such command",)),
    usage("--bogus", says=("No such option", "nplus --help")),
    usage("run", says=("Missing argument 'RECIPE'", "run --help")),
    usage("run", "toyy", says=("unknown recipe 'toyy'", "did you mean 'toy'?")),
    usage("run", "", says=("unknown recipe ''",)),
    usage("run", "toy:", says=("unknown recipe", "known:")),
    usage("run", "../toy", says=("unknown recipe '../toy'",)),
    usage("run", "toy", "--seed", "x", says=("--seed", "valid int")),
    usage("run", "toy", "--seed", "-1", says=("--seed", "0")),
    usage("run", "toy", "--until", "dpo", says=("--until dpo", "its stages are data, pretrain")),
    usage("run", "toy", "--bogus", says=("No such option",)),
    usage("run", "toy", "more", says=("unexpected extra argument",)),
    usage("run", "toy", "--out", says=("--out",)),
    usage("run", "real", says=("posts.jsonl", "--set data=PATH")),
    usage("check", says=("Missing argument", "check --help")),
    usage("check", "toyy", says=("did you mean 'toy'?",)),
    usage("check", "real", "--world-size", "3", says=("3 processes", "multiple")),
    usage("check", "real", "--world-size", "0", says=("--world-size", "1")),
    usage("check", "toy", "--out", "x", says=("No such option",)),
    usage("recipes", "toy", says=("unexpected extra argument", "recipes --help")),
    usage("recipes", "--set", "x", says=("No such option",)),
    usage("details", "Z9", says=("unknown detail 'Z9'", "nplus details")),
    usage("details", "", says=("unknown detail ''",)),
    usage("details", "F7 E8", says=("unknown detail", "did you mean")),
    usage("details", "F7", "--run", "none", says=("none: not a run directory", "name one")),
    usage("report", says=("Missing argument 'RUN'",)),
    usage("report", "none", says=("none: not a run directory", "name one")),
    usage("evaluate", "none", "--against", "x", says=("none: not a run directory",)),
    usage("evaluate", "none", says=("--against",)),
    usage("tune", "--device", "tpu", says=("--device tpu", "cpu, cuda")),
    usage("tune", "--show", "--force", says=("give one of them",)),
    usage("tune", "--show", says=("not tuned", "run `nplus tune`")),
    usage("tune", "toy", says=("unexpected extra argument",)),
    usage("tune", "--json=x", says=("--json",)),
    usage("ablate", "Z9", says=("unknown detail 'Z9'",)),
    usage("ablate", "A1", says=("A1: nothing to ablate",)),
    usage("ablate", "F7", "F7", says=("given twice",)),
    usage("ablate", "F7", "--seeds", "0", says=("--seeds", "1")),
    usage("ablate", "F7", "--seeds", "many", says=("--seeds",)),
    usage("ablate", "F7", "--jobs", "0", says=("--jobs",)),
    usage("ablate", "F7", "--recipe", "toyy", says=("did you mean 'toy'?",)),
    usage("ablate", "F7", "--set", "seed=3", says=("--seeds",)),
    usage("ablate", "F7", "--set", "x", says=("KEY=VALUE",)),
    usage("ablate", "F7", "--config", "none.yaml", says=("none.yaml", "cannot read it")),
    usage("ablate", "--flip", "no colon", says=("--flip no colon", "needs NAME: KEY=VALUE")),
    usage("ablate", "--flip", ": a=1", says=("needs NAME: KEY=VALUE",)),
    usage("ablate", "--flip", "x: 'a=1", says=("close the quotes",)),
    usage("ablate", "--flip", "x: ppo.gama=1", says=("x: --set ppo.gama=1", "ppo.gamma")),
    usage("ablate", "--flip", "x: ppo.lam=9", says=("x: ", "ppo.lam=9")),
    usage("ablate", "--flip", "x: ppo.lam=0.95", says=("x: the baseline", "leave them out")),
    usage("ablate", "--flip", "a: seed=1", "--flip", "a: seed=2", says=("a: given twice",)),
    usage("scale", "tldr", says=("unknown family 'tldr'", "known: toy")),
    usage("scale", "--sizes", "9B", says=("unknown size '9B'", "0.3M")),
    usage("scale", "--sizes", "", says=("unknown size ''",)),
    usage("scale", "--sizes", "1M,1M", says=("1M: given twice",)),
    usage("scale", "--seeds", "-2", says=("--seeds",)),
    usage("scale", "--set", "model.size=4M", says=("--sizes",)),
    usage("scale", "--set", "ppo.gamma=2", says=("ppo.gamma=2",)),
    usage("scale", "--config", "none.yaml", says=("none.yaml",)),
    usage("scale", "--set", "until=sft", says=("ends before the verdict", "set until=null")),
]


def out(name: str, path: str, make: Make, *says: str, command: tuple[str, ...] = ()) -> Case:
    """A directory that nothing can be written into, or that holds something else."""
    command = command or ("run", "toy:tiny")
    return Case(f"out: {command[0]} {name}", (*command, "--out", path), (*says, "--out"), make)


GRID = ("ablate", "F7", "--recipe", "toy:tiny", "--jobs", "1", "--seeds", "1")
SCALE = ("scale", "--sizes", "0.3M", "--seeds", "1", "--jobs", "1")
OUT = [
    case
    for command in (("run", "toy:tiny"), GRID, SCALE)
    for case in (
        out("a file", "f", text("f", "x"), "f: is a file", command=command),
        out("below a file", "f/o", text("f", "x"), "f/o", "f is a file", command=command),
        out("a link to nothing", "l", link("l", "gone/o"), "l: is a link", command=command),
        out("other files", "d", text("d/notes.txt", "x"), "d: holds files", command=command),
        out("a NUL", "a\0b", folder("x"), "null byte", command=command),
        out("a name too long", f"x/{'n' * 300}", folder("y"), "no directory", command=command),
    )
]

DATA_NAMES = [
    Case(
        f"data name: {name[:30]}",
        ("run", "toy:tiny", *sets(f"data={name}", "label.kind=contrast", "evaluate.judge=reward")),
        says,
        make,
    )
    for name, says, make in (
        ("none.jsonl", ("none.jsonl: no such file", "--set data=PATH"), folder("x")),
        ("./none", ("./none: no such file", "--set data=PATH"), folder("x")),
        ("~/none", ("~/none: no such file",), folder("x")),
        ("~nobody-here/x", ("~nobody-here/x", "--set data=PATH"), folder("x")),
        ("gone.jsonl", ("gone.jsonl: a link to nothing",), link("gone.jsonl", "nowhere")),
        (f"{'d' * 300}.jsonl", ("File name too long",), folder("x")),
        ("/dev/zero", ("/dev/zero: neither a file nor a folder",), folder("x")),
    )
]

OTHERS = [
    Case("data: no source", ("data", "check"), ("Missing argument", "--help")),
    Case("data: nothing there", ("data", "check", "none.jsonl"), ("none.jsonl", "no such file")),
    Case(
        "data: a recipe that is none",
        ("data", "check", "p.jsonl", "--recipe", "nope"),
        ("nope", "toy"),
        jsonl("p.jsonl", []),
    ),
    Case(
        "data: a tokenizer that is none",
        ("data", "check", "p.jsonl", "--tokenizer", "there"),
        ("there",),
        both(jsonl("p.jsonl", [{"post": "A post.", "summary": "A."}]), folder("there")),
    ),
    Case("doctor: nothing there", ("doctor", "nowhere"), ("nowhere",)),
    Case("doctor: no run", ("doctor", "./d"), ("d",), folder("d")),
    Case("doctor: a bad setting", ("doctor", "toy", "--set", "ppo.gamma=2"), ("ppo.gamma=2",)),
    Case("run: no process", ("run", "toy", "--processes", "0"), ("--processes",)),
]

CASES = [
    *OTHERS,
    *YAML,
    *FILES,
    *SYNTAX,
    *RANGES,
    *CONTRADICTIONS,
    *USAGE,
    *OUT,
    *DATA_NAMES,
    Case(
        "the same settings for every command that takes any",
        ("check", "toy", "--set", "ppo.gamma=2"),
        ("ppo.gamma=2",),
        both(jsonl("posts.jsonl", [])),
    ),
]
