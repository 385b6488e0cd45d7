from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from suite.modules.normalizer import RunningMoments, Scaler, update_scalers
from suite.specs import ALIVE, OBSERVATION, STATE

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


# ---------------------------------------------------------------------- scaler of inputs


def test_a_scaled_input_by_hand():
    """u = clip((o - m) / sqrt(v + 1e-8), -10, 10): (5 - 1) / 2, (0.5 - 2) / 3, 49 and -50 clipped, and no variance."""
    scaler = Scaler(3)
    scaler.moments.mean.copy_(torch.tensor([1.0, 2.0, 7.0]))
    scaler.moments.var.copy_(torch.tensor([4.0, 9.0, 9e-9]))
    assert_close(scaler(torch.tensor([[5.0, 0.5, 8.0], [99.0, -148.0, 7.0]])),
                 torch.tensor([[2.0, -0.5, 0.0], [10.0, -10.0, 0.0]]))


def test_scaler_standardises_clips_and_masks_what_never_varies():
    """A constant c has variance 1e-4 (1 + c^2) / n after n rows, from the start value: padding is known after 1e4."""
    x = torch.randn(1000, 4) * torch.tensor([2.0, 0.0, 0.0, 5.0]) + torch.tensor([1.0, 0.0, 3.0, 0.0])
    scaler = Scaler(4)
    assert scaler.mask.all() and scaler(x).abs().max() == 10
    for rows, mask in ((9_000, [True] * 4), (11_000, [True, False, True, True]), (101_000, [True, False, False, True])):
        while scaler.moments.count[0] < rows - 1:
            scaler.moments.update(x)
        assert scaler.mask.tolist() == mask
    out = scaler(x)
    assert_close(out.mean(0), torch.zeros(4), atol=2e-2, rtol=0)
    assert_close(out.std(0), torch.tensor([1.0, 0.0, 0.0, 1.0]), atol=2e-2, rtol=0)
    assert scaler(torch.tensor([1e6, 1e-3, 99.0, -1e6])).tolist() == [10.0, 0.0, 0.0, -10.0]


# agent 1 has a single feature: its zeros enter no mean, and its second feature never counts; agent 0 is dead in row 0
def test_padding_and_the_dead_count_in_no_statistic():
    unpadded, alive = torch.tensor([[True, True], [True, False]]), torch.tensor([[[False], [True]], [[True], [True]]])
    scaler = Scaler(2, unpadded)
    scaler.update(torch.tensor([[[50.0, 50.0], [1.0, 0.0]], [[3.0, 7.0], [5.0, 0.0]]]), alive)
    assert_close(scaler.moments.mean, torch.tensor([3.0, 7.0]), rtol=1e-4, atol=0)
    assert scaler.moments.count.tolist() == pytest.approx([3, 1], abs=1e-3)
    assert scaler.mask.tolist() == [[True, True], [True, False]]
    assert not scaler(torch.full((5, 2, 2), 9.0))[:, 1, 1].any() and "unpadded" not in scaler.state_dict()


def test_every_role_has_statistics_of_its_own():
    """Roles 7, 2, 7: the first feature is 1, 3 | 5, 7 for the one, 100, 300 for the other; a padded one stays out."""
    unpadded = torch.tensor([[True, True], [True, False], [True, True]])
    scaler = Scaler(2, unpadded, roles=(7, 2, 7))
    x = torch.tensor([[[1.0, 4.0], [100.0, 0.0], [3.0, 4.0]], [[5.0, 8.0], [300.0, 0.0], [7.0, 8.0]]])
    scaler.update(x)
    assert_close(scaler.mean, torch.tensor([[4.0, 6.0], [200.0, 0.0], [4.0, 6.0]]), rtol=1e-3, atol=1e-3)
    assert scaler.moments.count.flatten().tolist() == pytest.approx([2, 0, 4, 4], abs=1e-3)  # role 2 stands first
    assert_close(scaler(x)[0, :, 0], torch.tensor([-3 / (20 / 3) ** 0.5, -(0.5**0.5), -1 / (20 / 3) ** 0.5]),
                 rtol=1e-3, atol=1e-3)
    scaler.update(x + 1000, alive=torch.zeros(2, 3, 1, dtype=torch.bool))
    assert_close(scaler.mean[:, 0], torch.tensor([4.0, 200.0, 4.0]), rtol=1e-3, atol=1e-3)
    one = Scaler(2, unpadded, roles=(1, 1, 1))
    assert one.moments.mean.shape == (2,) and one.mask.shape == (3, 2) and set(one.state_dict()) == {
        "moments.mean", "moments.var", "moments.count"}


def test_statistics_of_all_roles_are_taken_for_each():
    """Those of a checkpoint from before roles had their own."""
    pooled, scaler = Scaler(2), Scaler(2, roles=(0, 1))
    pooled.update(torch.randn(50, 2, 2))
    torch.nn.Sequential(scaler).load_state_dict(torch.nn.Sequential(pooled).state_dict())
    for name, value in pooled.moments.named_buffers():
        assert torch.equal(getattr(scaler.moments, name), torch.stack([value, value]))
    assert pooled.state_dict()["moments.mean"].shape == (2,)


def test_scalers_take_in_the_living_and_a_state_where_somebody_lives():
    """Agents of 1, 3 | 5, (100) | (100, 100): mean 3 of 3; states 10, 20, (999): mean 15 of 2 (the dead)."""
    batch = TensorDict({OBSERVATION: torch.tensor([[[1.0], [3.0]], [[5.0], [100.0]], [[100.0], [100.0]]])[None],
                        STATE: torch.tensor([[[10.0], [20.0], [999.0]]]),
                        ALIVE: torch.tensor([[[True, True], [True, False], [False, False]]])}, [1, 3])
    scalers = {OBSERVATION: Scaler(1), STATE: Scaler(1)}
    update_scalers(scalers, batch, mask=ALIVE)
    for key, mean, count in ((OBSERVATION, 3.0, 3), (STATE, 15.0, 2)):
        assert scalers[key].moments.mean.item() == pytest.approx(mean, rel=1e-4)
        assert scalers[key].moments.count.item() == pytest.approx(count, abs=1e-3)
    update_scalers(scalers, batch, mask=None)
    assert [scalers[key].moments.count.item() for key in scalers] == pytest.approx([9, 5], abs=1e-3)
