import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from suite import distributed
from suite.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--task", "vmas/navigation", "--num-envs", "4", "--steps", "10", "--max-steps", "8", "--minibatch-size", "20",
         "--epochs", "2", "--actor-cells", "8", "--critic-cells", "8", "--eval-episodes", "2", "--evaluations", "1",
         "--quiet", "--normalize-observation",
         "--checkpoint-every", "1", "--keep-checkpoints", "9", "--task-options", "n_agents=2"]


def torchrun(*command, check=True):
    """Two processes on this machine, on a free port (--standalone)."""
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                           *command],
                          cwd=ROOT, capture_output=True, text=True, timeout=240,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


# ---------------------------------------------------------------------- one process: the identity


def test_without_torchrun_everything_is_the_identity():
    assert distributed.start("cpu") == torch.device("cpu") and not torch.distributed.is_initialized()
    assert distributed.rank() == 0 and distributed.world_size() == 1
    param = nn.Parameter(torch.zeros(2))
    distributed.average_gradients([param])
    assert param.grad is None
    x = torch.randn(3)
    assert distributed.average(x) is x
    assert distributed.any_process(True) is True and distributed.any_process(False) is False
    distributed.broadcast([nn.Linear(2, 2)])
    distributed.stop()


@pytest.mark.parametrize("dims", [(0,), (0, 1), (0, 2), (0, 1, 2)])
def test_moments(dims):
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    mean, var, count = distributed.moments(x, dims)
    exact = x.double()  # summed in float64 and rounded once
    assert torch.equal(mean, exact.mean(dims).float()) and torch.equal(var, exact.var(dims).float())
    assert count.shape == mean.shape and count.eq(torch.tensor([x.shape[d] for d in dims]).prod()).all()


def test_masked_moments_by_hand():
    x = torch.tensor([[1.0, 9.0], [3.0, 5.0], [100.0, 7.0]])
    mask = torch.tensor([[True], [True], [False]])
    mean, var, count = distributed.moments(x, (0,), mask)
    assert mean.tolist() == [2.0, 7.0] and var.tolist() == [2.0, 8.0] and count.tolist() == [2.0, 2.0]
    mean, var, count = distributed.moments(x[:1], (0,))  # one element: variance 0, not nan
    assert mean.tolist() == [1.0, 9.0] and var.tolist() == [0.0, 0.0] and count.tolist() == [1.0, 1.0]


# columns: 1, 2, 6 with a mask on all, first and third, second only, none: means 3, 3.5, 2, 0;
# squares of the deviations 4 + 1 + 9 = 14 over 2, 2 * 6.25 over 1, a single element, nothing
def test_every_column_may_have_a_mask_of_its_own():
    x = torch.tensor([[1.0], [2.0], [6.0]]).expand(3, 4)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    mean, var, count = distributed.moments(x, (0,), mask)
    assert mean.tolist() == [3, 3.5, 2, 0] and var.tolist() == [7, 12.5, 0, 0] and count.tolist() == [3, 2, 1, 0]
    assert mean.dtype == var.dtype == torch.float32


def test_a_mask_is_broadcast_and_hides_what_it_leaves_out():
    x = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([True, False, True, True, False]).view(5, 1, 1)
    expected = distributed.moments(x[mask.flatten()], (0, 1))
    x[~mask.flatten()] = 1e6
    assert all(torch.equal(a, b) for a, b in zip(distributed.moments(x, (0, 1), mask), expected, strict=True))
    assert expected[2].tolist() == [12, 12, 12]


def test_a_single_element_has_variance_0():
    mean, var, count = distributed.moments(torch.tensor([[7.0, -2.0]]), (0,))
    assert mean.tolist() == [7, -2] and var.tolist() == [0, 0] and count.tolist() == [1, 1]


def test_large_means_do_not_cancel():
    x = 1e5 + torch.randn(1000, generator=torch.Generator().manual_seed(2))
    _, var, _ = distributed.moments(x, (0,))
    assert var.item() == pytest.approx(x.double().var().item(), rel=1e-5)


# ---------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torchrun(str(ROOT / "tests" / "scripts" / "two_processes.py"), str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_there_were_two(both):
    assert [(one["rank"], one["world"]) for one in both] == [(0, 2), (1, 2)]


def test_gradients_are_the_average_and_a_missing_one_counts_as_zero(both):
    for one in both:
        assert torch.equal(one["gradients"][0], torch.full((3,), 1.5))
        assert torch.equal(one["gradients"][1], torch.full((2, 2), 4.0))


def test_statistics_are_of_all_processes(both):
    data = torch.arange(24.0).reshape(4, 2, 3).square()
    for one in both:
        assert torch.equal(one["average"], torch.tensor([1.5, 10.0]))
        mean, var, count = one["moments"]
        assert torch.allclose(mean, data.mean((0, 1))) and torch.allclose(var, data.var((0, 1)))
        assert count.tolist() == [8, 8, 8]
    assert all(torch.equal(both[0]["running"][key], both[1]["running"][key]) for key in ("mean", "var", "count"))
    everything = torch.cat([data, data + 100]).reshape(-1, 3)
    assert torch.allclose(both[0]["running"]["mean"], everything.mean(0), rtol=1e-4)


def test_broadcast_gives_the_first_processs_parameters_and_buffers(both):
    torch.manual_seed(0)
    expected = torch.randn(2)
    for one in both:
        assert torch.equal(one["module"]["weight"], expected)
        assert torch.equal(one["module"]["running_mean"], both[0]["module"]["running_mean"])


def test_agreement(both):
    for one in both:
        assert one["any"] == [False, True, True] and one["common"] == 5
        assert "no whole checkpoint in common: [[0], [1]]" in one["no common"]


# ---------------------------------------------------------------------- the recipe


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Six iterations at once; and three, then three more."""
    folder = tmp_path_factory.mktemp("runs")
    torchrun("-m", "recipes.cooperative", *SMALL, "--run-dir", str(folder / "whole"), "--frames", "480")
    torchrun("-m", "recipes.cooperative", *SMALL, "--run-dir", str(folder / "parts"), "--frames", "240")
    torchrun("-m", "recipes.cooperative", "--resume", str(folder / "parts"), "--frames", "480")
    return folder


def state(folder, rank, iteration=None):
    return Checkpoints(folder / "checkpoints", rank=rank).load(iteration)


def equal(a, b):
    """Nested dicts and lists of tensors and numbers, bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_parameters_are_equal_on_both_and_have_moved(runs):
    first, second = state(runs / "whole", 0), state(runs / "whole", 1)
    assert first["frames"] == 480 and first["iteration"] == 6
    assert equal(first["policy"], second["policy"]) and equal(first["updates"], second["updates"])
    assert not equal(first["policy"], state(runs / "whole", 0, 0)["policy"])


def test_inputs_are_standardised_by_what_both_have_seen(runs):
    """480 frames of two agents, of which each process has seen half."""
    for rank in (0, 1):
        found = state(runs / "whole", rank)
        counts = [x for name, x in found["policy"].items() if name.endswith("scaler.moments.count")]
        counts += [x for loss in found["updates"]["mappo"]["losses"] for name, x in loss.items()
                   if name.endswith("scaler.moments.count")]
        assert len(counts) >= 3 and all(x == pytest.approx(960, abs=1e-3) for count in counts for x in count.tolist())


def test_environments_and_actions_differ_between_processes(runs):
    for iteration in (0, 6):
        first, second = (state(runs / "whole", rank, iteration) for rank in (0, 1))
        assert not equal(first["random"], second["random"])
        assert not equal(first["collector"]["env"], second["collector"]["env"])


def test_metrics_are_written_once_and_count_all_frames(runs):
    for name in ("reward/task", "mappo/loss_policy"):
        lines = (runs / "whole" / "metrics" / "scalars" / f"{name}.csv").read_text().splitlines()
        assert [int(line.split(",")[0]) for line in lines] == [80 * k for k in range(1, 7)]


def test_resume_continues_to_the_last_bit(runs):
    for name in ("reward/task", "mappo/loss_policy", "mappo/loss_value", "mappo/grad_norm_actor"):
        whole, parts = ((runs / which / "metrics" / "scalars" / f"{name}.csv").read_text() for which in ("whole",
                                                                                                         "parts"))
        assert whole == parts
    for rank in (0, 1):
        whole, parts = state(runs / "whole", rank), state(runs / "parts", rank)
        for key in ("policy", "updates", "collector", "random", "episodes", "estimators", "sources"):
            assert equal(whole[key], parts[key]), key


def test_resume_falls_back_to_the_newest_checkpoint_that_both_have(runs):
    """Process 1's newest is broken: both take the one before, and reach the same end."""
    newest = max((runs / "parts" / "checkpoints").glob("*.rank1.pt"))
    newest.write_bytes(newest.read_bytes()[:-10])
    torchrun("-m", "recipes.cooperative", "--resume", str(runs / "parts"), "--frames", "480")
    for rank in (0, 1):
        assert equal(state(runs / "whole", rank)["policy"], state(runs / "parts", rank)["policy"])


def test_one_process_does_not_resume_a_run_of_two(runs):
    done = subprocess.run([sys.executable, "-m", "recipes.cooperative", "--resume", str(runs / "whole")], cwd=ROOT,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "processes: 2 -> 1" in done.stderr
