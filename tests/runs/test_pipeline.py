"""The pipeline: runs what is new, skips what is complete and unchanged, and never overwrites."""

import pytest

from nplus.runs import Pipeline, RunRoot


class Road:
    """Two chained stages that count their runs."""

    def __init__(self, path):
        self.path = path
        self.ran = []
        self.told = []

    def __call__(self, *, data=1, sft=1, seed=1, version=1, fail=None):
        self.ran.clear()
        self.told.clear()
        pipeline = Pipeline(
            root=RunRoot(self.path),
            recipe="toy",
            config={"data": data, "sft": sft},
            seed=seed,
            on_stage=lambda name, where, state: self.told.append((name, state)),
        )

        def body(name):
            def run(where):
                self.ran.append(name)
                if fail == name:
                    raise RuntimeError("no space left")
                (where.path / "artefact").write_text(name, encoding="utf-8")
                return {"rows": 3}

            return run

        pipeline.run("data", {"rows": data}, body("data"))
        pipeline.run("sft", {"lr": sft}, body("sft"), version=version, inputs={"posts": "data"})
        return pipeline


@pytest.fixture
def road(tmp_path):
    return Road(tmp_path / "run")


def test_a_first_run_runs_everything_and_says_what_it_was(road):
    pipeline = road()
    assert road.ran == ["data", "sft"]
    manifest = pipeline.dirs["sft"].manifest()
    assert manifest.status == "complete"
    assert manifest.results == {"rows": 3}
    assert manifest.config == {"lr": 1}
    assert manifest.inputs == (
        {"role": "posts", "path": pipeline.dirs["data"].path.name, "hash": pipeline.keys["data"]},
    )
    assert manifest.packages["torch"]
    assert manifest.code_version
    assert pipeline.dirs["sft"].path.name == f"sft-{manifest.key[:8]}"
    assert RunRoot(road.path).index()["recipe"] == "toy"


def test_a_second_run_skips_everything(road):
    first = road()
    before = {n: d.manifest_path.read_bytes() for n, d in first.dirs.items()}
    second = road()
    assert road.ran == []
    assert road.told == [("data", "skip"), ("sft", "skip")]
    assert {n: d.manifest_path.read_bytes() for n, d in second.dirs.items()} == before


@pytest.mark.parametrize(
    ("change", "ran"),
    [
        ({"sft": 2}, ["sft"]),
        ({"data": 2}, ["data", "sft"]),
        ({"seed": 2}, ["data", "sft"]),
        ({"version": 2}, ["sft"]),
    ],
)
def test_a_change_runs_what_depends_on_it_beside_the_old_result(road, change, ran):
    first = road()
    changed = road(**change)
    assert road.ran == ran
    for name in ran:
        assert changed.dirs[name].path != first.dirs[name].path
        assert first.dirs[name].complete(first.keys[name])
    road()
    assert road.ran == []


def test_a_failed_stage_says_why_and_runs_again(road):
    with pytest.raises(RuntimeError, match="no space left"):
        road(fail="sft")
    [where] = road.path.glob("sft-*")
    assert '"failed"' in (where / "manifest.json").read_text(encoding="utf-8")
    assert "RuntimeError: no space left" in (where / "manifest.json").read_text(encoding="utf-8")
    road()
    assert road.ran == ["sft"]


def test_an_interrupt_is_not_taken_for_success(road):
    def interrupted(where):
        raise KeyboardInterrupt

    pipeline = Pipeline(root=RunRoot(road.path), recipe="toy", config={}, seed=1)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run("data", {"rows": 1}, interrupted)
    road()
    assert road.ran == ["data", "sft"]


def test_an_outside_input_counts_by_its_content(tmp_path):
    def key(what):
        pipeline = Pipeline(root=RunRoot(tmp_path / "run"), recipe="toy", config={}, seed=1)
        where = pipeline.run("data", {}, lambda where: {}, inputs={"posts": what})
        assert where.manifest().inputs[0]["path"] == "posts.jsonl"
        return pipeline.keys["data"]

    assert key("posts.jsonl:aa") != key("posts.jsonl:bb")
    assert key("posts.jsonl:aa") == key("posts.jsonl:aa")


def test_an_input_that_no_stage_made_is_an_error(tmp_path):
    pipeline = Pipeline(root=RunRoot(tmp_path / "run"), recipe="toy", config={}, seed=1)
    with pytest.raises(ValueError, match="which no earlier stage made"):
        pipeline.run("sft", {}, lambda where: {}, inputs={"posts": "dta"})
