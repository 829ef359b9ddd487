"""What a grid's runs come to: conditions, effects by hand, sizes, and nothing lost on the way."""

import json
import math
import re

import pytest

from nplus.details import details
from nplus.recipes import recipe, sized
from nplus.recipes.toy import SIZES
from nplus.records import InputError
from nplus.report.grid_page import write_ablation, write_scale
from nplus.stages import ablation, scaling
from nplus.stages.ablation import Condition, of_details, of_flips, without_effect
from nplus.stages.grid import Grid, crossed, resolve

NO_KL = Condition("no KL", "Fixed beta", ("ppo.kl_coef=0",))
BROKEN = Condition("broken <b>", "Breaks | always", ("ppo.lam=0.5",))
COMMAND = "nplus ablate --flip 'no KL: ppo.kl_coef=0'"


def ablated(tmp_path, road, seeds=3, conditions=(NO_KL, BROKEN)):
    """Without KL PPO wins one post more under seed 1, two under seed 2...; BROKEN fails."""

    def fail(config, stage):
        if config.ppo.lam == 0.5 and stage == "ppo":
            raise FloatingPointError("NaN <script>alert(1)</script>")

    road.fail = fail
    road.wins = lambda c: 4 + (c.seed if c.ppo.kl_coef == 0 else 0)
    grid = Grid.open(tmp_path / "g", "ablate", "toy:tiny")
    cells = crossed([("baseline", ()), *((c.name, c.sets) for c in conditions)], seeds)
    entries = grid.run(resolve(cells, lambda _: recipe("toy:tiny")), road)
    data = ablation.summarise(grid, entries, conditions, "ppo")
    return grid, {"command": COMMAND, "recipe": "toy:tiny", **data}


def test_the_effect_is_that_of_ten_posts_and_three_seeds_by_hand(tmp_path, road):
    _, data = ablated(tmp_path, road)
    effect = data["conditions"][0]["win_rate"]
    # one post more won moves the tie: +0.1 a post
    assert effect["per_seed"] == pytest.approx((0.1, 0.2, 0.3))
    assert effect["value"] == pytest.approx(0.2)
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert (effect["low"], effect["high"]) == pytest.approx((0.2 - half, 0.2 + half))
    assert effect["boot_low"] < 0.2 < effect["boot_high"]
    assert (effect["seeds"], effect["posts"]) == ((1, 2, 3), 10)
    assert data["baseline"]["win_rate"]["value"] == pytest.approx(0.45)


def test_measures_are_the_trained_policys_on_the_judged_posts(tmp_path, road):
    _, data = ablated(tmp_path, road)
    kl = data["conditions"][0]["kl"]
    assert kl["per_seed"] == pytest.approx([-10 * recipe("toy:tiny").ppo.kl_coef] * 3)
    assert data["baseline"]["length"]["per_seed"] == [27.0, 28.0, 29.0]
    assert data["baseline"]["kl"]["per_seed"] == pytest.approx(
        [10 * recipe("toy:tiny").ppo.kl_coef + seed for seed in (1, 2, 3)]
    )
    assert data["baseline"]["greedy_length"]["value"] == 30.0
    assert data["baseline"]["eos_rate"]["value"] == pytest.approx(0.9)
    assert data["conditions"][0]["eos_rate"]["value"] == pytest.approx(0)


def test_a_condition_that_always_fails_has_no_effect_but_stands_there(tmp_path, road):
    _, data = ablated(tmp_path, road)
    broken = data["conditions"][1]
    assert all(broken[name] is None for name in ("win_rate", "kl", "length", "eos_rate"))
    failed = [cell for cell in data["cells"] if cell["status"] == "failed"]
    assert [(cell["name"], cell["seed"]) for cell in failed] == [
        ("broken <b>", s) for s in (1, 2, 3)
    ]


def test_the_seed_where_one_side_failed_is_left_out(tmp_path, road):
    def fail(config, stage):
        if (config.seed, config.ppo.kl_coef, stage) == (2, 0.0, "ppo"):
            raise FloatingPointError

    grid, _ = ablated(tmp_path, road, conditions=(NO_KL,))
    cells = crossed([("baseline", ()), ("other", ("ppo.kl_coef=0.0", "ppo.lam=0.9"))], 3)
    road.fail = fail
    configs = resolve(cells, lambda _: recipe("toy:tiny"))
    entries = grid.run(configs, road)
    data = ablation.summarise(grid, entries, [Condition("other", "", ("x",))], "ppo")
    assert data["conditions"][0]["win_rate"]["seeds"] == (1, 3)
    assert data["conditions"][0]["win_rate"]["per_seed"] == pytest.approx((0.1, 0.3))


def test_one_seed_has_a_value_and_no_interval(tmp_path, road):
    _, data = ablated(tmp_path, road, seeds=1)
    sheet = write_ablation(tmp_path, data)
    assert sheet.rows[1][3] == "+10.0"


def test_json_markdown_and_page_tell_every_cell(tmp_path, road):
    _, data = ablated(tmp_path, road)
    sheet = write_ablation(tmp_path, data)
    stored = json.loads((tmp_path / "ablation.json").read_text())
    assert stored["command"] == COMMAND
    assert len(stored["cells"]) == 9
    text = (tmp_path / "ablation.md").read_text()
    assert COMMAND in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert "+20.0 [-4.8, +44.8]" in table[3]
    assert table[4].startswith("| broken &lt;b&gt; | Breaks \\| always: ppo.lam=0.5 | 0 of 3 |")
    assert "broken &lt;b&gt;, seeds 1, 2, 3: failed: FloatingPointError: NaN" in text
    page = (tmp_path / "ablation.html").read_text()
    for cell in data["cells"]:
        row = f"<tr><th>{cell['name'].replace('<', '&lt;').replace('>', '&gt;')}</th>"
        assert f'{row}<td class="n">{cell["seed"]}</td>' in page
        assert all(where in page for where in cell["stages"].values())
    assert page.count('class="badge failed"') == 3
    assert "<script" not in page
    assert page.count("<svg") == 5
    assert "no result" in page
    assert sheet.rows[0][:3] == ("baseline", "as toy:tiny", "3")


def test_the_forest_is_drawn_where_the_numbers_are(tmp_path, road):
    from nplus.report.grid_figures import MEASURES, forest

    _, data = ablated(tmp_path, road)
    svg = forest(data["conditions"], MEASURES[0]).svg
    assert "+20.0 [" in svg
    # the same length from the line of no effect to 10, 20 and 30 points: seeds are evenly spaced
    ticks = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', svg)
    by_height = {}
    for x, y in ticks:
        by_height.setdefault(y, []).append(float(x))
    three = next(xs for xs in by_height.values() if len(xs) == 3)
    assert three[1] - three[0] == pytest.approx(three[2] - three[1], abs=1e-3)
    assert three[1] > three[0]
    # their mean is the middle one, and the large dot stands there, alone at its height
    [dot] = [xs[0] for xs in by_height.values() if len(xs) == 1]
    assert dot == pytest.approx(three[1], abs=1e-3)


def test_many_conditions_say_how_many_would_stand_out_by_chance(tmp_path, road):
    _, data = ablated(tmp_path, road)
    data["conditions"] = data["conditions"][:1] * 40
    text = " ".join(write_ablation(tmp_path, data).notes)
    assert "0 of 40 intervals" in text
    assert "(2.0 here)" in text


# --- conditions --------------------------------------------------------------------------------


def test_details_become_conditions_with_their_settings():
    [found] = of_details(["f7"])
    assert found.name.startswith("F7 ")
    assert found.sets == ("ppo.whiten_advantages=false",)
    both = of_details(["E5"])
    assert len({c.name for c in both}) == 2
    every = of_details([])
    assert {c.name.split()[0] for c in every} == {d.id for d in details() if d.ablation}


def test_the_registrys_conditions_are_runs_of_the_toy_that_differ():
    cells = crossed([("baseline", ()), *((c.name, c.sets) for c in of_details([]))], 1)
    configs = resolve(cells, lambda _: recipe("toy"))
    assert without_effect(configs) == []


@pytest.mark.parametrize(
    ("ids", "text"), [(["Z9"], "unknown detail 'Z9'"), (["F1"], "F1: nothing")]
)
def test_details_that_cannot_be_flipped(ids, text):
    with pytest.raises(InputError, match=text):
        of_details(ids)


def test_flips_of_ones_own():
    [found] = of_flips(["hot: ppo.sampling.temperature=1.5 'ppo.tempered=[old, new]'"])
    sets = ("ppo.sampling.temperature=1.5", "ppo.tempered=[old, new]")
    assert (found.name, found.sets) == ("hot", sets)


@pytest.mark.parametrize("text", ["hot", "hot:", ": a=1", "hot: a", "hot: 'a=1"])
def test_a_flip_that_is_none(text):
    with pytest.raises(InputError, match="--flip"):
        of_flips([text])


def test_a_flip_to_what_is_there_already_is_found():
    cells = crossed([("baseline", ()), ("same", ("ppo.lam=0.95",)), ("a", ("ppo.lam=1",))], 2)
    assert without_effect(resolve(cells, lambda _: recipe("toy:tiny"))) == ["same"]


# --- sizes -------------------------------------------------------------------------------------


def scaled(tmp_path, road, seeds=3, sizes=("0.3M", "1M", "4M")):
    """PPO wins seed + 1, 2 or 3 posts; 4M fails under seed 2."""

    def fail(config, stage):
        if (config.model.size, config.seed, stage) == ("4M", 2, "reward"):
            raise MemoryError("out of <memory>")

    road.fail = fail
    road.wins = lambda c: c.seed + sizes.index(c.model.size)
    grid = Grid.open(tmp_path / "s", "scale", "toy:dpo")
    cells = crossed([(size, ()) for size in sizes], seeds)
    entries = grid.run(resolve(cells, lambda size: sized("toy", size)), road)
    return {"command": "nplus scale", "recipe": "toy", **scaling.summarise(grid, entries)}


def test_sizes_have_means_over_seeds_by_hand(tmp_path, road):
    data = scaled(tmp_path, road)
    small, _, large = data["sizes"]
    ppo = small["win_rate"]["ppo"]
    assert ppo["per_seed"] == pytest.approx([0.15, 0.25, 0.35])
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert (ppo["value"], ppo["low"]) == pytest.approx((0.25, 0.25 - half))
    assert small["win_rate"]["sft"]["per_seed"] == [0.25, 0.25, 0.25]
    assert (small["parameters"], small["documents"]) == (276_000, 15_000)
    assert (large["complete"], large["asked"], large["failed"]) == (2, 3, [2])
    assert large["win_rate"]["ppo"]["per_seed"] == pytest.approx([0.35, 0.55])
    assert set(small["reward_model"]) == {"accuracy"}
    assert len(data["points"]) == 8


@pytest.mark.detail("D7")
def test_reward_models_of_two_seeds_agree_as_by_hand(tmp_path, road):
    """Right on 4, 2 and 1 of 4: two seeds agree on 2, 1 and 3; by chance on 1/2, 1/4 and 1/2."""
    small, _, large = scaled(tmp_path, road)["sizes"]
    found = small["seed_agreement"]
    assert [(p["a"], p["b"], p["rate"]) for p in found["pairs"]] == [
        ("seed 1", "seed 2", 0.5),
        ("seed 1", "seed 3", 0.25),
        ("seed 2", "seed 3", 0.75),
    ]
    assert [p["chance"] for p in found["pairs"]] == [0.5, 0.25, 0.5]
    assert (found["rate"], found["comparisons"]) == (0.5, 4)
    assert found["chance"] == pytest.approx(1.25 / 3)
    assert [(p["a"], p["b"]) for p in large["seed_agreement"]["pairs"]] == [("seed 1", "seed 3")]
    write_scale(tmp_path, scaled(tmp_path, road))
    assert "| 50.0 (41.7) |" in (tmp_path / "scale.md").read_text()
    alone = scaled(tmp_path / "alone", road, seeds=1)
    assert alone["sizes"][0]["seed_agreement"] is None
    write_scale(tmp_path / "alone", alone)
    assert "two seeds" not in (tmp_path / "alone" / "scale.md").read_text()


def test_the_scale_page_and_pictures(tmp_path, road):
    data = scaled(tmp_path, road)
    write_scale(tmp_path, data)
    text = (tmp_path / "scale.md").read_text()
    assert "| 4M | 3,682,304 | 15,000 | 2 of 3 (1 failed) |" in text
    assert "25.0 [0.2, 49.8]" in text
    page = (tmp_path / "scale.html").read_text()
    assert page.count('<th>4M</th><td class="n">') == 3 + 1  # its cells, and its row
    assert "1 of 3 failed" in page  # below the cross in the figure
    assert "out of &lt;memory&gt;" in page
    assert "DPO" not in page
    svg = (tmp_path / "scale.svg").read_text()
    assert "#0a0b0" not in svg  # no stand-in colour is left
    assert "#0072b2" in svg
    assert (tmp_path / "scale.png").read_bytes()[:4] == b"\x89PNG"
    assert len(json.loads((tmp_path / "scale.json").read_text())["points"]) == 8


def test_every_seed_is_a_dot_at_its_height(tmp_path, road, monkeypatch):
    from nplus.report import grid_figures

    data = scaled(tmp_path, road, sizes=("0.3M", "1M"))
    colours = {colour: colour for colour in grid_figures.VARIABLES}
    upper, lower = grid_figures._scaling(data, colours, (6, 6)).axes
    dots = [line for line in upper.lines if line.get_marker() == "o"]
    drawn = {(x, round(y, 6)) for line in dots for x, y in zip(*line.get_data(), strict=True)}
    ppo = {(276_000, 15), (276_000, 25), (276_000, 35)}
    assert ppo | {(1_055_488, 25), (1_055_488, 35), (1_055_488, 45)} <= drawn
    assert lower.get_xscale() == "log"
    assert any(set(line.get_ydata()) == {50} for line in upper.lines)  # the reference line


def test_dpo_is_drawn_where_the_runs_have_it(tmp_path, road):
    data = scaled(tmp_path, road, sizes=("0.3M", "1M"))
    for point in data["points"]:
        point["win_rate"]["dpo"] = 0.31
    for row in data["sizes"]:
        row["win_rate"]["dpo"] = {"value": 0.31, "low": 0.3, "high": 0.32}
    write_scale(tmp_path, data)
    assert "DPO wins, %" in (tmp_path / "scale.md").read_text()
    assert ">DPO<" in (tmp_path / "scale.html").read_text()


def test_a_grid_where_everything_failed_is_still_shown(tmp_path, road):
    def fail(config, stage):
        raise RuntimeError("no")

    scaled(tmp_path, road, seeds=1)
    road.fail = fail
    grid = Grid.open(tmp_path / "t", "scale", "toy:dpo")
    cells = crossed([("1M", ()), ("4M", ())], 1)
    entries = grid.run(resolve(cells, lambda size: sized("toy", size)), road)
    data = {"command": "nplus scale", "recipe": "toy", **scaling.summarise(grid, entries)}
    write_scale(tmp_path, data)
    assert "1 of 1 failed" in (tmp_path / "scale.html").read_text()
    conditions = [NO_KL]
    summary = ablation.summarise(grid, entries, conditions, "ppo")
    sheet = write_ablation(tmp_path, {"command": "c", "recipe": "toy", **summary})
    assert len(sheet.failures) == 2


def test_every_size_of_the_toy_is_a_whole_road_of_that_size():
    plain = recipe("toy:dpo")
    for size in SIZES:
        config = sized("toy", size)
        assert (config.recipe, config.model.size, config.sft.copy_gate) == ("toy:dpo", size, 0.0)
        assert config.stage_names() == plain.stage_names()
        for name in ("data", "sample", "label"):  # nothing but the model differs
            assert getattr(config, name) == getattr(plain, name)
        assert config.ppo.total_episodes == plain.ppo.total_episodes
    assert sized("toy", "1M").ppo == plain.ppo
    for stage in ("pretrain", "sft", "reward", "ppo", "dpo"):
        rates = [getattr(sized("toy", size), stage).optim.learning_rate for size in SIZES]
        assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(("family", "size"), [("cow", "1M"), ("toy", "3M")])
def test_a_size_that_there_is_not(family, size):
    with pytest.raises(InputError, match="known: "):
        sized(family, size)
