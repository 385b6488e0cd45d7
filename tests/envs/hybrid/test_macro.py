"""The loop over sub-steps, its random numbers, and what an environment of macro steps promises."""

import pytest
import torch
from scipy.stats import kstest, norm

from envs.compiling import one_graph
from envs.hybrid import macro
from envs.hybrid.macro import FEW, FREE, example, macro_options, masked, normals, run_sub_steps, uniforms

torch.set_num_threads(1)


def countdown(k, work, keys):
    """Work is the time left, how often it moved, and the last sub-step."""
    return torch.stack([work[0] - 1, work[1] + keys[0], k.expand(work.shape[1]).to(work.dtype)]), work[0] > 1


def run(times, limit=50, active=None, keys=None):
    times = torch.as_tensor(times, dtype=torch.float32)
    work = torch.stack([times, torch.zeros_like(times), torch.full_like(times, -1.0)])
    keys = torch.ones(1, len(times), dtype=torch.int32) if keys is None else keys
    active = torch.ones(len(times), dtype=torch.bool) if active is None else active
    return run_sub_steps(masked(countdown), work, keys, active=active, limit=limit), work


def test_every_row_stops_by_itself():
    for rows in (1, FEW, 500):
        times = torch.randint(1, 40, (rows,), generator=torch.Generator().manual_seed(rows))
        keys = torch.arange(rows, dtype=torch.int32).unsqueeze(0)
        (work, count, cut), begin = run(times, keys=keys)
        assert torch.equal(count, times.int()) and not cut.any()
        assert (work[0] == 0).all() and torch.equal(work[1], (times * keys[0]).float())
        assert torch.equal(work[2], times - 1.0) and (begin[2] == -1).all()


def test_a_device_keeps_all_rows(monkeypatch):
    """The other way through the loop, with another distance between its questions."""
    times = torch.randint(1, 40, (300,), generator=torch.Generator().manual_seed(0))
    (one, count, _), _ = run(times)
    monkeypatch.setattr(macro, "KEEP", 0.0)
    monkeypatch.setattr(macro, "ASK_EVERY", {})
    (two, other, _), _ = run(times)
    assert torch.equal(one, two) and torch.equal(count, other)


def test_the_limit_cuts_who_is_still_going():
    (work, count, cut), _ = run([3, 60, 10, 11] * 20, limit=10)
    assert cut.view(20, 4).tolist() == [[False, True, False, True]] * 20
    assert count.view(20, 4).tolist() == [[3, 10, 10, 10]] * 20
    assert work[0].view(20, 4).tolist() == [[0, 50, 0, 1]] * 20


def test_rows_that_are_not_active_stay():
    active = torch.tensor([True, False] * 30)
    (work, count, cut), begin = run([5.0] * 60, active=active)
    assert torch.equal(work[:, ~active], begin[:, ~active])
    assert torch.equal(count, 5 * active) and not cut.any()
    (work, count, cut), begin = run([5.0] * 60, active=torch.zeros(60, dtype=torch.bool))
    assert torch.equal(work, begin) and not count.any() and not cut.any()


def keys_of(rows, seed=0):
    keys = torch.empty(2, rows, dtype=torch.int64).random_(-2**31, 2**31, generator=torch.Generator().manual_seed(seed))
    return keys.to(torch.int32)


def at(k):
    return torch.tensor(k, dtype=torch.int32)


def test_random_numbers_are_uniform_and_normal():
    keys = keys_of(400)
    flat = torch.stack([uniforms(at(k), keys, 6) for k in range(50)])  # [50, 6, 400]
    assert flat.dtype == torch.float32 and flat.min() >= 0 and flat.max() < 1
    assert kstest(flat.flatten().double().numpy(), "uniform").pvalue > 1e-3
    bell = torch.stack([normals(at(k), keys) for k in range(100)])
    assert bell.isfinite().all() and kstest(bell.flatten().double().numpy(), norm.cdf).pvalue > 1e-3
    assert normals(at(0), torch.zeros(2, 1, dtype=torch.int32)).isfinite().all()


def test_random_numbers_do_not_know_of_each_other():
    """Neither those of one row, nor those of rows or sub-steps that follow each other; keys may be neighbours too."""
    for keys in (keys_of(2000), torch.stack([torch.arange(2000), torch.zeros(2000)]).to(torch.int32)):
        numbers = torch.cat([uniforms(at(k), keys, 6) for k in range(4)]).double()  # [24, 2000]
        assert (torch.corrcoef(numbers) - torch.eye(24)).abs().max() < 4.5 / 2000**0.5
        assert (torch.corrcoef(numbers.t()[:60]) - torch.eye(60)).abs().max() < 0.9
        shifted = (numbers[:, 1:] - 0.5) * (numbers[:, :-1] - 0.5)
        assert shifted.mean().abs() < 4.5 / 12 / shifted.numel() ** 0.5
    assert len(uniforms(at(0), keys_of(4000), 6).unique()) > 0.998 * 24000


def test_a_rows_numbers_depend_on_its_keys_alone():
    keys = keys_of(10)
    assert torch.equal(uniforms(at(7), keys, 6)[:, 3:5], uniforms(at(7), keys[:, 3:5], 6))
    assert not torch.equal(uniforms(at(7), keys, 6), uniforms(at(8), keys, 6))


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_one_graph_for_any_number_of_rows(backend):
    graph = one_graph(masked(countdown), backend, *example(3, torch.device("cpu")), free=FREE)
    for rows in (40, 17, 300):
        times = torch.arange(1.0, rows + 1)
        work = torch.stack([times, 0 * times, 0 * times])
        rest = torch.ones(2, rows, dtype=torch.int32), torch.ones(rows, dtype=torch.bool), times.int()
        for ours, theirs in zip(graph(at(1), work, *rest), masked(countdown)(at(1), work, *rest), strict=True):
            assert torch.equal(ours, theirs)


def test_options():
    assert macro_options("goal", {"fixed": True}, fixed=False) == {"fixed": True, "backend": None}
    assert macro_options("goal", {"compile": "eager"}) == {"backend": "eager"}
    with pytest.raises(ValueError, match=r"hybrid/goal has no option 'fixd'; it has \['fixed', 'compile'\]; did you"):
        macro_options("goal", {"fixd": True}, fixed=False)
    with pytest.raises(ValueError, match="fixed must be True or False, got 3"):
        macro_options("goal", {"fixed": 3}, fixed=False)
    with pytest.raises(ValueError, match="compile must be False, True or one of"):
        macro_options("goal", {"compile": "gcc"})
