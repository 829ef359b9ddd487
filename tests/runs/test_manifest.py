"""The manifest: replaced whole or not at all, and hashes that follow content and nothing else."""

import hashlib
import json

import pytest

from nplus.runs import Manifest, content_hash, key_of
from nplus.runs.manifest import package_versions
from nplus.runs.storage import write_json


def make(**changes):
    given = {"stage": "sft", "key": "k" * 64, "status": "complete", "config": {"a": 1}, "seed": 3}
    return Manifest(**(given | changes))


def test_round_trip(tmp_path):
    manifest = make(
        inputs=({"role": "data", "path": "data-1", "hash": "h"},),
        results={"loss": 0.5},
        packages=package_versions(),
    )
    manifest.write(tmp_path / "manifest.json")
    assert Manifest.read(tmp_path / "manifest.json") == manifest


def test_a_write_that_fails_leaves_the_old_manifest_whole(tmp_path):
    path = tmp_path / "manifest.json"
    make(status="running").write(path)
    with pytest.raises(TypeError):
        make(results={"model": object()}).write(path)
    assert Manifest.read(path).status == "running"


def test_the_file_is_replaced_never_edited(tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})
    before = path.open(encoding="utf-8")
    write_json(path, {"a": 2})
    with before:
        assert json.load(before) == {"a": 1}
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_key_is_of_content_not_of_order():
    assert key_of({"a": 1, "b": [1, 2]}) == key_of({"b": [1, 2], "a": 1})
    assert key_of("sft", 1) != key_of("sft", 2)
    assert key_of("a", "bc") != key_of("ab", "c")
    assert len(key_of()) == 64


def test_a_files_hash_is_that_of_its_bytes(tmp_path):
    file = tmp_path / "one"
    file.write_bytes(b"some bytes")
    assert content_hash(file) == hashlib.sha256(b"some bytes").hexdigest()


def test_a_folders_hash_tells_names_from_contents(tmp_path):
    def folder(name, files):
        for path, data in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(data)
        return content_hash(tmp_path / name)

    two = folder("two", {"a": b"x", "b": b"y"})
    assert two == folder("same", {"b": b"y", "a": b"x"})
    others = [
        folder("one", {"a": b"xb\0y"}),
        folder("moved", {"a": b"x", "c": b"y"}),
        folder("deep", {"a": b"x", "d/b": b"y"}),
        folder("swapped", {"a": b"y", "b": b"x"}),
    ]
    assert len({two, *others}) == 5
