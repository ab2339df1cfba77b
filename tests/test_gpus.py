"""Jobs share GPUs by lock files: each gets the one that fewest others use."""

import os

import pytest

from editscale.workflow import gpus


def shown():
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_each_lease_takes_the_gpu_that_fewest_use_and_gives_it_back(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    taken = []
    with gpus.lease("cuda", tmp_path):
        taken.append(shown())
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")  # as another process sees it
        with gpus.lease("cuda", tmp_path):
            taken.append(shown())
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
            with gpus.lease("cuda", tmp_path):
                taken.append(shown())
    assert taken == ["4", "7", "4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    with gpus.lease("cuda", tmp_path):
        assert shown() == "4"
    assert shown() == "4,7"


@pytest.mark.parametrize(("device", "visible"), [("cpu", "0,1"), (None, "0,1"), ("cuda:1", "0,1"), ("cuda", "3")])
def test_nothing_changes_where_there_is_nothing_to_choose(tmp_path, monkeypatch, device, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with gpus.lease(device, tmp_path / "leases"):
        assert shown() == visible
    assert not (tmp_path / "leases").exists()


def test_more_jobs_than_leases_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "MOST", 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    match = "each of the GPUs 0, 1 has 0 jobs; start fewer"
    with pytest.raises(RuntimeError, match=match), gpus.lease("cuda", tmp_path):
        pass


def test_an_error_inside_a_lease_ends_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ZeroDivisionError), gpus.lease("cuda", tmp_path):
        raise ZeroDivisionError
    with gpus.lease("cuda", tmp_path):
        assert shown() == "0"
