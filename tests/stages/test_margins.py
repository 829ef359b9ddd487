"""Margins of comparisons: who reads them, and what happens where they are missing."""

import dataclasses
import math

import pytest

from nplus.config import DPOConfig
from nplus.data.tokens import train_bpe
from nplus.records import Comparison, InputError
from nplus.stages import dpo, reward

PLAIN = Comparison("k7", "Q:", ("left.", "right."), ("sft", "reference"), 1)
WITH = dataclasses.replace(PLAIN, margin=0.5)


@pytest.fixture(scope="module")
def codec():
    return train_bpe(["left and right, right and left, Q:"] * 3, 300)


def test_the_reward_model_reads_margins_only_where_it_is_told_to(stage_context, codec):
    told = stage_context(codec=codec, reward={"margin": "data"})
    plain = stage_context(codec=codec)
    assert [row.margin for row in reward.margined_rows([WITH], told)] == [0.5]
    assert [row.margin for row in reward.margined_rows([WITH, PLAIN], plain)] == [0.0, 0.0]
    with pytest.raises(InputError, match=r"reward\.margin=data: comparison 'k7' has margin None"):
        reward.margined_rows([WITH, PLAIN], told)


@pytest.mark.parametrize("margin", [None, math.nan, math.inf])
def test_a_soft_loss_without_margins_is_refused(margin, stage_context, codec):
    ctx = stage_context(codec=codec)
    rows = [WITH, dataclasses.replace(PLAIN, margin=margin)]
    with pytest.raises(InputError, match=r"rounds\.loss_type=soft_tv: comparison 'k7'") as error:
        dpo.rows_of(rows, ctx, DPOConfig(loss_type="soft_tv"), "rounds")
    assert "set rounds.loss_type=sigmoid" in str(error.value)
    assert len(dpo.rows_of(rows[:1], ctx, DPOConfig(loss_type="soft_tv"), "dpo")) == 1


def test_designated_responses_are_those_of_the_named_policy(stage_context, codec):
    ctx = stage_context(codec=codec)
    none = dpo.rows_of([WITH], ctx, DPOConfig(), "dpo")
    some = dpo.rows_of([WITH], ctx, DPOConfig(xpo_alpha=1e-5), "dpo")
    other = DPOConfig(xpo_alpha=1e-5, xpo_policy="round7")
    with pytest.raises(InputError, match=r"rounds\.xpo_policy=round7: it wrote no response"):
        dpo.rows_of([WITH], ctx, other, "rounds")
    assert [row.designated for row in (*none, *some)] == [(False, False), (True, False)]
