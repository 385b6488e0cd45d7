from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from suite.modules.normalizer import RunningMoments

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[2] / "golden" / "smpe"


def test_moments_equal_the_golden_file():
    golden = np.load(GOLDEN / "running_mean_std.npz")
    moments = RunningMoments((3,))
    for k in range(4):
        moments.update(torch.from_numpy(golden[f"x{k}"]))
        for name in ("mean", "var"):
            assert_close(getattr(moments, name), torch.from_numpy(golden[f"{name}{k}"]), rtol=1e-5, atol=1e-6)
        assert moments.count.tolist() == pytest.approx([float(golden[f"count{k}"])] * 3, rel=1e-12)


# c = 1e-4, mean 0, var 1; rows 1 and 3: b = 2, v = 2 (unbiased), N = 2, delta = 2, c + N = 2.0001
# mean = 2 * 2 / 2.0001;  var = (1e-4 + 2 * 2 + 4 * 1e-4 * 2 / 2.0001) / 2.0001
def test_first_update_by_hand():
    moments = RunningMoments((1,))
    moments.update(torch.tensor([[1.0], [3.0]]))
    assert moments.mean.item() == pytest.approx(4 / 2.0001, rel=1e-6)
    assert moments.var.item() == pytest.approx((1e-4 + 4 + 8e-4 / 2.0001) / 2.0001, rel=1e-6)


def test_leading_dimensions_are_rows_and_features_are_apart():
    x = torch.randn(4, 5, 3, 2) * torch.tensor([1.0, 10.0]) + torch.tensor([0.0, -3.0])
    moments = RunningMoments((2,))
    moments.update(x)
    rows = x.reshape(-1, 2)
    assert_close(moments.mean, rows.mean(0), rtol=1e-4, atol=1e-4)
    assert_close(moments.var, rows.var(0), rtol=1e-3, atol=1e-3)
    normal = moments(x).reshape(-1, 2)
    assert_close(normal.mean(0), torch.zeros(2), rtol=0, atol=1e-3)
    assert_close(normal.std(0), torch.ones(2), rtol=1e-3, atol=0)


def test_masked_rows_are_left_out():
    x = torch.randn(4, 3, 1, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(4, 3, 1, generator=torch.Generator().manual_seed(1)) < 0.5
    first, second = RunningMoments((1,)), RunningMoments((1,))
    first.update(x.masked_fill(~mask, 99.0), mask)
    second.update(x[mask].unsqueeze(-1))
    for name in ("mean", "var", "count"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert 0 < first.count < 12


def test_elements_of_one_row_may_be_left_out_apart():
    """An agent that has left stops counting for itself alone: each element has a count, a mean, a variance."""
    x = torch.randn(6, 2, 1, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(6, 2, 1, dtype=torch.bool)
    mask[2:, 1] = False
    both, first, second = RunningMoments((2, 1)), RunningMoments((1,)), RunningMoments((1,))
    for _ in range(2):
        both.update(x, mask)
        first.update(x[:, 0])
        second.update(x[:2, 1])
    assert both.count.flatten().tolist() == pytest.approx([12 + 1e-4, 4 + 1e-4], rel=1e-12)
    for name in ("mean", "var", "count"):
        assert_close(getattr(both, name), torch.stack([getattr(first, name), getattr(second, name)]))


def test_one_row_has_variance_0_and_none_changes_nothing():
    moments = RunningMoments((1,))
    moments.update(torch.tensor([[3.0]]))
    # c = 1e-4: mean 3 / 1.0001; var (1e-4 + 0 + 9 * 1e-4 / 1.0001) / 1.0001
    assert moments.mean.item() == pytest.approx(3 / 1.0001, rel=1e-6)
    assert moments.var.item() == pytest.approx((1e-4 + 9e-4 / 1.0001) / 1.0001, rel=1e-5)
    before = {name: value.clone() for name, value in moments.state_dict().items()}
    moments.update(torch.tensor([[50.0], [60.0]]), torch.zeros(2, 1, dtype=torch.bool))
    assert all(torch.equal(value, before[name]) for name, value in moments.state_dict().items())


def test_epsilon_is_added_to_the_deviation():
    moments = RunningMoments((1,))
    moments.mean.fill_(1.0)
    moments.var.fill_(4.0)
    assert_close(moments(torch.tensor([7.0]), eps=1.0), torch.tensor([2.0]))  # (7 - 1) / (2 + 1)


def test_state_dict_continues_exactly_and_nothing_is_trainable():
    first, second = RunningMoments((2,)), RunningMoments((2,))
    first.update(torch.randn(7, 2))
    second.load_state_dict(first.state_dict())
    x = torch.randn(5, 2, requires_grad=True)
    first.update(x)
    second.update(x)
    for name in ("mean", "var", "count"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert not getattr(first, name).requires_grad
    assert not list(first.parameters())
    assert first.count.dtype == torch.float64
