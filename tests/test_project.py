"""Repository policy: files and functions stay small, and the README's tree is the tree."""

import ast
import re
import tomllib
from pathlib import Path

import yaml

import nplus

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "nplus"
FILE_LINES, FUNCTION_LINES = 400, 80


def test_no_file_is_long():
    lengths = {f: len(f.read_text(encoding="utf-8").splitlines()) for f in SRC.rglob("*.py")}
    long = {str(f.relative_to(ROOT)): n for f, n in lengths.items() if n > FILE_LINES}
    assert not long


def long_functions(source: str) -> dict[str, int]:
    functions = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    lengths = {f.name: f.end_lineno - f.lineno + 1 for f in functions}
    return {name: n for name, n in lengths.items() if n > FUNCTION_LINES}


def test_no_function_is_long():
    found = {
        f"{file.relative_to(ROOT)}: {name}": n
        for file in SRC.rglob("*.py")
        for name, n in long_functions(file.read_text(encoding="utf-8")).items()
    }
    assert not found


def test_a_long_function_would_be_found():
    body = "    x = 1\n"
    assert long_functions("def f():\n" + body * FUNCTION_LINES) == {"f": FUNCTION_LINES + 1}
    assert long_functions("def f():\n" + body * (FUNCTION_LINES - 1)) == {}


def test_every_module_says_what_it_is():
    silent = [
        str(file.relative_to(ROOT))
        for file in SRC.rglob("*.py")
        if not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not silent


def readme_tree(text: str) -> dict[str, str]:
    """`path below src/nplus -> comment` of the README's tree: two spaces of indent a level."""
    block = text.split("```text\nsrc/nplus/\n", 1)[1].split("```", 1)[0]
    entries, folders = {}, []
    for line in block.splitlines():
        match = re.fullmatch(r"((?:  )+)(\S+)(?: +(\S.*))?", line)
        assert match, f"not a line of the tree: {line!r}"
        indent, name, comment = match.groups()
        folders = [*folders[: len(indent) // 2 - 1], name.rstrip("/")]
        assert "/".join(folders) not in entries, f"listed twice: {line!r}"
        entries["/".join(folders)] = comment or ""
    return entries


def test_the_readme_lists_every_module_and_nothing_else():
    listed = readme_tree((ROOT / "README.md").read_text(encoding="utf-8"))
    modules = {f for f in SRC.rglob("*.py") if f.name != "__init__.py"}
    folders = {f.parent for f in SRC.rglob("*.py")} - {SRC}
    there = {path.relative_to(SRC).as_posix() for path in modules | folders}
    missing, gone = sorted(there - set(listed)), sorted(set(listed) - there)
    assert (missing, gone) == ([], []), f"add {missing} and remove {gone} in README.md"
    assert all(listed.values()), f"no comment: {[k for k, v in listed.items() if not v]}"


def test_the_links_of_the_documents_lead_somewhere():
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = re.sub(r"```.*?```|<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def test_the_commands_of_the_readme_are_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.M))
    named = set()
    for page in ("README.md", "AGENTS.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        named |= set(re.findall(r"(?:`|^|    )make ([a-z][a-z-]*)", text, flags=re.M))
    assert {"quickstart", "test"} <= named <= targets


def test_versions_and_pins_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == nplus.__version__

    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {plain(line.split("==")[0]) for line in lines if not line.startswith("#")}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {plain(re.match(r"[\w.-]+", requirement)[0]) for requirement in wanted}
    assert names <= pinned


def test_pre_commit_needs_no_network():
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert [repo["repo"] for repo in yaml.safe_load(text)["repos"]] == ["local"]
