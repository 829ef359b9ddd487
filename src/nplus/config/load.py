"""A recipe's config, a YAML file and `--set key=value`, merged and checked as one."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from nplus.config.auto import AUTO, AUTO_KEYS
from nplus.config.base import Config
from nplus.config.presets import Tree, merge, prepared
from nplus.config.run import RunConfig
from nplus.records import InputError

MOST_VALUES = 10_000
"""A config has some two hundred."""
LARGEST = 2**53
"""The largest number that JSON keeps; no setting comes near it."""
MOST_PROBLEMS = 20
"""That one message lists."""
LIST = "; `nplus check RECIPE` prints every key"
SHOWN = 200
"""Characters of a wrong value that a message shows."""
SECRET = re.compile(r"api_key|secret|password|credential", re.I)
"""Settings to which people give a key or a password, whether there is such a setting or not: no
message shows the value."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-5` is a number and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            where = key_node.start_mark
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a name", where)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", where
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_config(
    recipe_config: RunConfig, *, config_file: Path | None = None, sets: Sequence[str] = ()
) -> RunConfig:
    """`recipe_config` changed by a YAML file, then by each `a.b=c` of `sets`, and validated again.

    `data=PATH` is short for `data.data=PATH` and `data.source=files`, `compute=auto` for `auto` in
    every key of `AUTO_KEYS`. A component that the recipe leaves out begins with its defaults, one
    of `LIKE_PPO` with the budget and sampling of PPO. Every unknown key and every wrong value is
    named in one `InputError`.
    """
    layers = [(str(config_file), _read_yaml(config_file))] if config_file else []
    layers += [(f"--set {_told(text)}", _parse_set(text)) for text in sets]
    trees = [tree for _, tree in layers]
    merged = prepared(recipe_config.model_dump(), trees, _defaults)
    problems: list[str] = []
    for source, tree in layers:
        tree, wrong = _known_only(RunConfig, _unabbreviated(tree))
        problems += [f"{source}: {problem}" for problem in wrong]
        merged = merge(merged, tree)
    home = _Home(layers)
    if merged["recipe"] != recipe_config.recipe:
        given = f"{home.of(('recipe',))}recipe={_shown(merged['recipe'])}"
        problems.append(
            f"{given}: these settings belong to another recipe than "
            f"{recipe_config.recipe!r}; run that one, or remove the key"
        )
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        places = [problem["loc"] for problem in error.errors(include_url=False)]
        told = zip(places, explain(error), strict=True)
        problems += [f"{home.of(place)}{line}" for place, line in told]
    if problems:
        raise InputError(_listed(problems))
    return config


class _Home:
    """Which file a setting stands in; one that `--set` gives says so by its key."""

    def __init__(self, layers: Sequence[tuple[str, Tree]]) -> None:
        self.layers = layers

    def of(self, place: Sequence[int | str]) -> str:
        """`FILE: `, or nothing."""
        names = [name for name in place if isinstance(name, str)]
        for source, tree in reversed(self.layers):
            if names and _holds(_unabbreviated(tree), names):
                return "" if source.startswith("--set ") else f"{source}: "
        return ""


def _holds(tree: Any, names: Sequence[str]) -> bool:
    """Whether a key, or the component it is in, stands in a tree."""
    for name in names:
        if not isinstance(tree, dict):
            return True
        if name not in tree:
            return False
        tree = tree[name]
    return True


def _unabbreviated(tree: Tree) -> Tree:
    """`tree` with `data=PATH` and `compute=auto` written out."""
    if isinstance(tree.get("data"), str):
        tree = {**tree, "data": {"data": tree["data"], "source": "files"}}
    if tree.get("compute") == AUTO:
        tree = {name: value for name, value in tree.items() if name != "compute"}
        for key in AUTO_KEYS:
            part, _, name = key.partition(".")
            tree = merge({part: {name: AUTO}}, tree)  # a key that stands beside it wins
    return tree


def dump_yaml(config: Config) -> str:
    """The config as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_hash(config: Config) -> str:
    """A 64-character hash, equal for equal settings."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_config(tree: Mapping[str, Any], source: str) -> RunConfig:
    """The config that `dump_yaml` or a run's index holds; InputError where it does not fit this
    version of nplus."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise InputError(
            f"{source}: its settings are not those of this version of nplus "
            f"({'; '.join(explain(error))}); run it again"
        ) from error


def explain(error: ValidationError) -> list[str]:
    """One line for each problem of a pydantic error: key, given value and what is wanted."""
    lines = []
    for problem in error.errors(include_url=False):
        key = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in problem["loc"])[1:]
        message = problem["msg"].removeprefix("Value error, ")
        message = re.sub(r"^\w+ should", "must", message)
        if problem["type"] == "value_error":  # a validator of ours: its message names keys and mend
            lines.append(f"{key}: {message}" if key else message)
        elif problem["type"] == "missing":
            lines.append(f"{key}: is required and was not given")
        else:
            given = "***" if SECRET.search(key) else _shown(problem["input"])
            lines.append(f"{key}={given}: {message}")
    return lines


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def known_keys(model: type[Config] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a config, components included."""
    for name in model.model_fields:
        yield prefix + name
        if component := _component(model, name):
            yield from known_keys(component, f"{prefix}{name}.")


def default_of(key: str) -> Any:
    """The default of a dotted key, as JSON has it. Raises KeyError for an unknown key.

    A component's default may set its own keys: PPO's schedule is linear, others' cosine.
    """
    model: type[Config] | None = RunConfig
    value: Any = None
    for name in key.split("."):
        if model is None or name not in model.model_fields:
            raise KeyError(key)
        inherited = getattr(value, name) if isinstance(value, Config) else None
        value = model.model_fields[name].get_default() if inherited is None else inherited
        model = _component(model, name)
    return list(value) if isinstance(value, tuple) else value


def _read_yaml(path: Path) -> Tree:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror}); name a YAML file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text; name a YAML file") from error
    except ValueError as error:  # a NUL in the path
        raise InputError(f"{path}: cannot read it ({error}); name a YAML file") from error
    tree = _parse_yaml(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(
            f"{path}: expected keys and values, found {type(tree).__name__}; "
            "`nplus check RECIPE` prints such a file"
        )
    return tree


def _told(text: str) -> str:
    """A `--set` as messages show it: whole, but for what may be a secret."""
    key, equals, _ = text.partition("=")
    if equals and SECRET.search(key.strip()):
        return f"{key}=***"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _parse_set(text: str) -> Tree:
    key, equals, value = text.partition("=")
    names = [name.strip() for name in key.split(".")]
    if not equals or not all(names):
        raise InputError(f"--set {_told(text)}: needs KEY=VALUE, as in --set ppo.kl_coef=0.1")
    tree = _parse_yaml(value, f"--set {_told(text)}")
    for name in reversed(names):
        tree = {name: tree}
    return dict(tree)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        tree = yaml.load(text, Loader=_Loader)
        _require_plain(tree)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{source}{where}: not valid YAML ({error.problem}); mend it") from error
    # Of a date that does not exist and the like, the loader lets Python's own errors through.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{source}: not valid YAML ({error}); mend it") from error
    return tree


def _require_plain(tree: Any) -> None:
    """ValueError for what no setting can be: endless nesting, half characters, huge numbers."""
    waiting, left = [tree], MOST_VALUES
    while waiting:
        value = waiting.pop()
        left -= 1
        if not left:  # a few aliases of aliases stand for billions
            raise ValueError(f"more than {MOST_VALUES:,} values")
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
        elif isinstance(value, str):
            value.encode()
            if "\0" in value:
                raise ValueError("a text holds a NUL")
        elif isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(f"a number beyond {LARGEST}")


def _known_only(model: type[Config], tree: Tree, prefix: str = "") -> tuple[Tree, list[str]]:
    """The part of `tree` whose keys exist, and a line for each that does not."""
    known: Tree = {}
    problems: list[str] = []
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if name not in model.model_fields:
            brief = len(problems) < MOST_PROBLEMS and len(key) < SHOWN
            problems.append(f"unknown key {key[:SHOWN]}{_nearest(key) if brief else LIST}")
        elif component := _component(model, name):
            if isinstance(value, dict):
                known[name], wrong = _known_only(component, value, f"{key}.")
                problems += wrong
            elif value is None:
                known[name] = None
            else:
                first = next(iter(component.model_fields))
                given = "***" if SECRET.search(key) else _shown(value)
                problems.append(f"{key}={given}: a component; set its keys, as in {key}.{first}")
        elif isinstance(value, dict):
            problems.append(f"unknown key {key}.{next(iter(value), '')}; {key} is one value")
        else:
            known[name] = value
    return known, problems


def _defaults(part: str) -> Tree:
    """What a component of a run begins with."""
    component = _component(RunConfig, part)
    return {} if component is None else component().model_dump()


def _component(model: type[Config], name: str) -> type[Config] | None:
    """The component that a field holds, or None for a plain value, a list of components too."""
    annotation = model.model_fields[name].annotation
    if get_origin(annotation) is tuple:
        return None
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Config):
            return kind
    return None


def _nearest(key: str) -> str:
    """`; did you mean ...?` with the nearest known keys: the same name elsewhere, or a like one."""
    keys = list(known_keys())
    leaf = key.rpartition(".")[2]
    same = [k for k in keys if k.rpartition(".")[2] == leaf]
    near = difflib.get_close_matches(key, same, n=4, cutoff=0.0)
    near = near or difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    if not near:
        leaves = {k.rpartition(".")[2]: k for k in keys}
        near = [leaves[k] for k in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.7)]
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return LIST


def _listed(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    shown = problems[:MOST_PROBLEMS]
    listed = "; ".join(f"({number}) {problem}" for number, problem in enumerate(shown, 1))
    more = f"; and {len(problems) - len(shown)} more" if problems[MOST_PROBLEMS:] else ""
    return f"{len(problems)} problems with the settings: {listed}{more}"
