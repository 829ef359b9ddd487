"""Imports only go down: the layers of docs/architecture.md, enforced on the syntax trees.

A unit is a package or module directly under `nplus`. Imports inside functions count too, except
where LAZY says that a unit may know another one only there.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1] / "src" / "nplus"

LAYERS = (
    ("ops", "config", "records", "runs", "details", "glossary", "findings", "seeding", "stats"),
    ("batches", "metrics"),
    ("distributed",),
    ("data", "models", "algorithms", "training"),
    ("engines",),
    ("rollout", "evaluation"),
    ("stages",),
    ("recipes", "report"),
    ("cli",),
    ("__main__",),
)

# What a unit may import from nplus, itself apart. `records` carries InputError, which every layer
# that meets a user's input raises.
ALLOWED = {
    "ops": "",
    "records": "",
    "details": "records",
    "glossary": "",
    "findings": "",
    "seeding": "",
    "stats": "",
    "config": "records",
    "runs": "records",
    "metrics": "ops",
    "batches": "ops metrics",
    "data": "records batches config seeding stats",
    "models": "ops batches config records",
    "algorithms": "ops batches metrics config records",
    "training": "ops batches metrics config records runs distributed",
    "distributed": "batches metrics config",
    "engines": "ops batches config records seeding models distributed",
    "rollout": "engines models ops batches config records",
    "evaluation": "records batches seeding stats engines",
    "stages": "ops config records runs details findings seeding stats batches metrics data models "
    "algorithms training distributed engines rollout evaluation",
    "recipes": "config records",
    "report": "records runs stats details findings",
    "cli": "config records recipes runs details glossary findings distributed stages report",
    "__main__": "cli",
}

# Third-party packages that a unit may import.
PACKAGES = {
    "ops": "torch",
    "config": "pydantic yaml",
    "records": "",
    "runs": "filelock pyarrow duckdb",
    "details": "yaml",
    "glossary": "",
    "findings": "",
    "seeding": "numpy",
    "stats": "numpy scipy",
    "batches": "torch",
    "metrics": "torch",
    "data": "torch numpy tokenizers transformers datasets pyarrow",
    "models": "torch transformers peft safetensors",
    "algorithms": "torch",
    "training": "torch safetensors",
    "distributed": "torch",
    "engines": "torch transformers",
    "rollout": "torch",
    "evaluation": "torch numpy rouge_score",
    "stages": "torch numpy transformers tokenizers safetensors rich",
    "recipes": "",
    "report": "numpy matplotlib jinja2 rich",
    "cli": "typer rich pydantic",
    "__main__": "",
}

# Known only inside functions, so that importing the unit stays light.
LAZY = {
    "cli": {"stages", "report", "rich", "pydantic"},
    "data": {"datasets", "pyarrow"},
    "runs": {"pyarrow", "duckdb"},
}

# The one module that may import an optional or heavy package.
ONLY_IN = {
    "vllm": "engines/vllm.py",
    "openai": "engines/api.py",
    "ray": "distributed/ray.py",
    "peft": "models/adapters.py",
}


class Import(NamedTuple):
    name: str
    """`torch`, or `nplus.ops` for what belongs to the project."""
    line: int
    lazy: bool


def imports(tree: ast.AST, module: str, lazy: bool = False) -> Iterator[Import]:
    """Every import of a module, with whether it happens only when a function runs."""
    for node in ast.iter_child_nodes(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: -node.level]
                base = ".".join([*package, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            ours = parts[0] == "nplus"
            yield Import(".".join(parts[:2]) if ours else parts[0], node.lineno, lazy)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        types_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        yield from imports(node, module, lazy or inside or types_only)


def violations(source: str, path: str) -> list[str]:
    """What the module at `path` (below src/nplus) imports against the tables."""
    if path == "__init__.py":
        return ["__init__.py: imports something"] if "import " in source else []
    unit = path.split("/")[0].removesuffix(".py")
    module = "nplus." + path.removesuffix(".py").replace("/", ".")
    found = []
    if unit not in ALLOWED:
        return [f"{path}: {unit} is not in the table"]
    for name, line, lazy in imports(ast.parse(source), module):
        top, _, what = name.partition(".")
        if top in sys.stdlib_module_names or name in (f"nplus.{unit}", "nplus.__version__"):
            continue
        known = ALLOWED[unit] if top == "nplus" else PACKAGES[unit]
        what = what or top
        home = ONLY_IN.get(what)
        if home and path != home:
            found.append(f"{path}:{line}: {what} belongs to {home} alone")
        elif not home and what not in known.split():
            found.append(f"{path}:{line}: {unit} may not import {what}")
        elif what in LAZY.get(unit, ()) and not lazy:
            found.append(f"{path}:{line}: {unit} may import {what} only inside a function")
    return found


def test_every_import_goes_down_the_table():
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 40
    found = [
        problem
        for file in files
        for problem in violations(
            file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix()
        )
    ]
    assert not found, "\n" + "\n".join(found)


def test_the_table_only_goes_down():
    height = {unit: n for n, layer in enumerate(LAYERS) for unit in layer}
    assert set(height) == set(ALLOWED) == set(PACKAGES)
    for unit, allowed in ALLOWED.items():
        for below in allowed.split():
            # within layer 0, records alone may be imported; batches are made of metrics
            exempt = below == "records" or (unit, below) == ("batches", "metrics")
            assert height[below] < height[unit] or exempt, (unit, below)


@pytest.mark.parametrize(
    ("path", "source", "problem"),
    [
        ("ops/kl.py", "from nplus.config import PPOConfig", "ops may not import config"),
        ("ops/kl.py", "import numpy as np", "ops may not import numpy"),
        ("config/ppo.py", "import torch", "config may not import torch"),
        ("runs/rundir.py", "def f():\n    import torch.nn", "runs may not import torch"),
        ("models/lm.py", "from nplus.data import tokens", "models may not import data"),
        ("models/lm.py", "from nplus import data", "models may not import data"),
        ("models/lm.py", "from ..data import tokens", "models may not import data"),
        ("data/world/gold.py", "from ...stages import sft", "data may not import stages"),
        ("data/sources.py", "import datasets", "data may import datasets only inside"),
        ("algorithms/ppo.py", "from nplus.engines.kv import KVEngine", "may not import engines"),
        ("stages/ppo.py", "import vllm", "vllm belongs to engines/vllm.py"),
        ("engines/kv.py", "if True:\n    from vllm import LLM", "vllm belongs to engines/vllm.py"),
        ("stages/ppo.py", "def f():\n    import ray", "ray belongs to distributed/ray.py"),
        ("cli/run.py", "from nplus.stages import road", "cli may import stages only inside"),
        ("utils/misc.py", "", "utils is not in the table"),
        ("__init__.py", "import torch", "imports something"),
    ],
)
def test_a_bad_module_is_caught(path, source, problem):
    assert problem in " ".join(violations(source, path))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ops/kl.py", "import math\nimport torch\nfrom nplus.ops.masking import x\n"),
        ("engines/vllm.py", "from vllm import LLM"),
        ("cli/run.py", "def f():\n    from nplus.stages import road"),
        ("cli/run.py", "if TYPE_CHECKING:\n    from nplus.report import page"),
        ("data/prepare.py", "from nplus.data.world import facts\nfrom .tokens import Codec"),
    ],
)
def test_a_good_module_passes(path, source):
    assert violations(source, path) == []
