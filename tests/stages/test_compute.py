"""How a process computes is what the configuration says."""

import os

import pytest
import torch

from nplus.config import ComputeConfig
from nplus.stages import compute, pretrain
from nplus.stages.compute import forward_precision, resolve_device


@pytest.fixture
def unchanged():
    """Restores what `resolve_device` sets for the whole process."""
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    cache = os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    yield
    torch.set_float32_matmul_precision(precision)
    torch.set_num_threads(threads)
    os.environ.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)
    if cache is not None:
        os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = cache


def test_threads_precision_and_cache_are_set(unchanged, monkeypatch):
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    found = resolve_device(ComputeConfig(device="cpu", threads=1, matmul_precision="medium"))
    assert found == torch.device("cpu")
    assert torch.get_num_threads() == 1
    assert torch.get_float32_matmul_precision() == "medium"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "256"


def test_a_cache_size_of_the_users_own_stays(unchanged, monkeypatch):
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    resolve_device(ComputeConfig(device="cpu"))
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"


@pytest.mark.parametrize("key", ["threads", "side_by_side", "matmul_precision", "allocator"])
def test_what_is_not_settled_is_refused(unchanged, key):
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="not settled"):
        resolve_device(ComputeConfig(device="cpu", **{key: "auto"}))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("one_arena", [(-3, 1 << 30), (-1, 1 << 30), (-8, 1)]),
        ("keep", [(-3, 1 << 30), (-1, 1 << 30)]),
        ("system", []),
    ],
)
def test_the_allocator_is_told_what_the_setting_says(unchanged, monkeypatch, kind, expected):
    told = []
    monkeypatch.setattr(compute, "glibc_mallopt", lambda: lambda *option: told.append(option))
    resolve_device(ComputeConfig(device="cpu", allocator=kind))
    assert told == expected  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_ARENA_MAX of malloc.h
    monkeypatch.setattr(compute, "glibc_mallopt", lambda: None)
    resolve_device(ComputeConfig(device="cpu", allocator=kind))  # another C library


@pytest.mark.parametrize(("autocast", "dtype"), [("none", "float32"), ("bfloat16", "bfloat16")])
def test_autocast_reaches_matrix_products(autocast, dtype):
    with forward_precision(torch.device("cpu"), autocast):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, dtype)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_pretraining_uses_the_configured_attention(attn, road_config, drive, tmp_path, monkeypatch):
    used = []
    train = pretrain.train

    def spy(model, *args, **kwargs):
        used.append(model.config._attn_implementation)
        return train(model, *args, **kwargs)

    monkeypatch.setattr(pretrain, "train", spy)
    config = road_config(model={"size": "0.3M", "attn_implementation": attn})
    drive(config, tmp_path / "run", until="pretrain")
    assert used == [attn]
