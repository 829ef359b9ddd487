"""In a grid `auto` comes to the same in all cells, and stays it."""

import json

from nplus.recipes import recipe
from nplus.stages.grid import Grid, cell_key, crossed, resolve
from nplus.stages.tuning.cache import write

CONDITIONS = [("baseline", ()), ("exact", ("compute.matmul_precision=highest",))]


def run(tmp_path, sets=("compute=auto",)):
    """The configs that ran, by seed and precision, and the grid's notes; every cell fails."""
    ran, notes = {}, []

    def note_config(config, out):
        ran[config.seed, config.compute.matmul_precision] = config
        raise RuntimeError("no more of it")

    configs = resolve(crossed(CONDITIONS, 2), lambda _: recipe("toy:tiny"), sets=sets)
    grid = Grid.open(tmp_path / "g", "ablate", "toy:tiny")
    grid.run(configs, note_config, on_note=notes.append)
    return ran, notes


def test_cells_are_settled_alike_and_the_grid_remembers(tuning, tmp_path):
    write(tuning())
    ran, notes = run(tmp_path)
    assert set(ran) == {(1, "medium"), (1, "highest"), (2, "medium"), (2, "highest")}
    # The baseline's attention, not what was tuned under the other precision.
    assert {c.model.attn_implementation for c in ran.values()} == {"batched"}
    assert {c.compute.threads for c in ran.values()} == {1}
    assert notes == []
    state = json.loads((tmp_path / "g" / "grid.json").read_text())
    assert state["auto"]["model.attn_implementation"] == "batched"
    keys = {row["key"] for row in state["cells"]}

    write(tuning(attention="eager"))
    again, notes = run(tmp_path)
    assert again == ran
    assert len(notes) == 1
    assert "model.attn_implementation stays batched" in notes[0]
    state = json.loads((tmp_path / "g" / "grid.json").read_text())
    assert {row["key"] for row in state["cells"]} == keys


def test_a_grid_without_auto_holds_none(tmp_path):
    run(tmp_path, sets=())
    assert "auto" not in json.loads((tmp_path / "g" / "grid.json").read_text())


def test_a_cell_is_keyed_without_what_changes_speed_alone():
    def key(*sets):
        [config] = resolve(
            crossed([("x", sets)], 1), lambda _: recipe("toy:tiny"), sets=[]
        ).values()
        return cell_key(config)

    assert key("compute.threads=1", "compute.allocator=keep") == key()
    assert key("model.attn_implementation=sdpa") != key()
