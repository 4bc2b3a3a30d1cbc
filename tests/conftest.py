"""Shared by all tests: one thread, so that numbers repeat to the last bit."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty project to write records, checkpoints and figures into."""
    monkeypatch.setenv("VIXLIB_ROOT", str(tmp_path))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    return tmp_path
