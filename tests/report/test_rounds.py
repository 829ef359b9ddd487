"""The loop's table, figures and words tell what its rounds came to, and only what is known."""

import dataclasses

import pytest
from rich.console import Console

from nplus.report.rounds import HEAD, Rounds, console_table, panels, sentences


def interval(value, /, **key):
    return {"low": value - 0.1, "high": value + 0.1, **key}


def row(number, *, won=None, kl=None, pairs=None):
    near = {"temperature": 0.01, "tokens": 20.0 + number, "score": 1.5, "proxy": 0.25}
    far = {"temperature": 0.7, "tokens": 30.0, "score": 1.25, "proxy": 0.125}
    if won is not None:
        near["against_sft"] = interval(won, rate=won)
    if kl is not None:
        far["kl"] = interval(kl, value=kl)
    return {"round": number, "validation": {"systems": [near, far]}, "pairs": pairs}


def paired(bias, **left_out):
    kept = 100 - sum(left_out.values())
    return {
        "prompts": 100,
        "pairs": kept,
        "left_out": left_out,
        "reward": -0.5,
        "reward_length_correlation": bias,
        "chosen_tokens": 21.0,
        "rejected_tokens": 25.0,
    }


FOUND = Rounds(
    rows=(
        row(0),
        row(1, won=0.6, kl=1.5, pairs=paired(0.4, tie=3, nan=2)),
        row(2, won=0.7, kl=4.0, pairs=paired(-0.2)),
    ),
    chosen=2,
)


def without_kl():
    rows = tuple(row(at, won=0.5 + at / 10 if at else None) for at in range(3))
    return dataclasses.replace(FOUND, rows=rows)


def test_cells_by_hand():
    sft, first, second = (dict(zip(HEAD, cells, strict=True)) for cells in FOUND.cells())
    assert (sft["round"], second["round"]) == ("SFT", "2 (chosen)")
    assert first["against SFT"] == "60.0% [50.0, 70.0]"
    assert (first["KL"], first["tokens"]) == ("1.5 [1.4, 1.6]", "21.0")
    assert (first["pairs"], first["left out"]) == ("95", "2 nan, 3 tie")
    assert (first["reward-length"], second["left out"]) == ("0.40", "0")


def test_the_table_of_a_terminal():
    console = Console(width=100)
    with console.capture() as captured:
        console.print(console_table(FOUND))
    assert "2 (chosen)  70.0% [60.0, 80.0]  4.0 [3.9, 4.1]    22.0    100" in captured.get()


def test_words():
    (text,) = sentences(FOUND)
    assert text == (
        "Of 2 rounds, round 2 was chosen: on the validation posts it wins 70.0% [60.0, 80.0] "
        "against SFT, 4.0 [3.9, 4.1] nats a response away from it. Within a prompt's samples, "
        "reward and length correlate by +0.40 in the first round and -0.20 in the last. Pairs left "
        "out: 5.0%, 0.0% of the prompts."
    )


def test_no_words_about_a_kl_that_no_temperature_gave():
    (text,) = sentences(without_kl())
    assert text.endswith("it wins 70.0% [60.0, 80.0] against SFT.")


@pytest.mark.parametrize(("found", "names"), [(FOUND, 3), (without_kl(), 2)])
def test_a_figure_of_distances_only_where_there_are_any(found, names):
    drawn = panels(found)
    assert len(drawn) == names
    assert [panel.name for panel in drawn][1:-1] == ["rounds-distance"] * (names - 2)


def test_a_proxy_that_is_the_judge_is_drawn_once():
    def by(judge):
        rows = [each | {"validation": each["validation"] | {"judge": judge}} for each in FOUND.rows]
        return panels(dataclasses.replace(FOUND, rows=tuple(rows)))[1]

    gold, own = by("gold"), by("reward")
    assert "gone too far" in gold.note
    assert "gone too far" not in own.note
    assert "judge's score" in gold.svg
    assert "judge's score" not in own.svg
