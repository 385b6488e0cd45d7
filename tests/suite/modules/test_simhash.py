import pytest
import torch
from torch.testing import assert_close

from suite.modules.simhash import BITS, BUCKETS, SimHash

torch.set_num_threads(1)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(n_agents=1, dim=1):
    """A hash whose projection is 1 in bit 0 of feature 0, and 0 elsewhere."""
    visits = SimHash(n_agents, dim)
    visits.projection.zero_()
    visits.projection[:, 0, 0] = 1.0
    return visits


# bit j weighs 2^j mod p: signs (1, 0, ..., 0) give key 1, (-1, 0, ...) give p - 1; bits 13 and 14 have 8192 and
# 16384 mod p, so + on 13 and - on 14 gives 8192 - (16384 mod p), brought into [0, p)
def test_keys_by_hand():
    visits = plain()
    assert visits.keys(torch.tensor([[[5.0]], [[-0.1]], [[0.0]]]))[:, 0].tolist() == [
        [1] * 6, [p - 1 for p in BUCKETS], [0] * 6]
    visits.projection.zero_()
    visits.projection[0, 0, 13], visits.projection[0, 0, 14] = 3.0, -0.5
    up, down = visits.keys(torch.tensor([[[2.0]], [[-2.0]]]))[:, 0].tolist()
    assert up == [(8192 - 16384 % p) % p for p in BUCKETS] and down == [(16384 % p - 8192) % p for p in BUCKETS]
    assert up[0] == 8192 - 6453 and down[0] == 9931 - 1739


def test_keys_by_python_integers():
    torch.manual_seed(0)
    visits, x = SimHash(3, 4), normal(2, 5, 3, 4)
    keys = visits.keys(x)
    assert keys.shape == (10, 3, 6) and keys.dtype == torch.int64
    rows = x.reshape(10, 3, 4).double()
    for row in range(10):
        for agent in range(3):
            signs = (rows[row, agent] @ visits.projection[agent]).sign().int().tolist()
            expected = [sum(s * pow(2, j, p) for j, s in enumerate(signs)) % p for p in BUCKETS]
            assert keys[row, agent].tolist() == expected
    assert (keys >= 0).all() and (keys < torch.tensor(BUCKETS)).all()


def test_the_sign_of_zero_is_zero():
    """Not a bit of its own side: 0 differs from a small number of either sign."""
    torch.manual_seed(0)
    visits, x = SimHash(1, 3), torch.tensor([[[0.0, 0, 0]], [[1e-30, 0, 0]], [[-1e-30, 0, 0]]])
    keys = visits.keys(x)[:, 0]
    assert keys[0].tolist() == [0] * 6 and len({tuple(row.tolist()) for row in keys}) == 3
    # opposite vectors have opposite codes
    assert torch.equal((keys[1] + keys[2]).remainder(visits.sizes), torch.zeros(6, dtype=torch.int64))


def test_only_the_direction_matters():
    torch.manual_seed(0)
    visits, x = SimHash(2, 3), normal(6, 2, 3)
    assert torch.equal(visits.keys(x), visits.keys(100 * x))


def test_all_rows_of_a_batch_are_counted_before_any_is_asked_for():
    visits = plain()
    x = torch.tensor([[[1.0]], [[2.0]], [[-1.0]], [[0.0]], [[3.0]]])
    assert visits(x).flatten().tolist() == [0] * 5
    visits.count(x)
    assert visits(x).flatten().tolist() == [3, 3, 1, 1, 3]
    visits.count(x[:2])
    assert visits(x).flatten().tolist() == [5, 5, 1, 1, 5]
    assert visits.tables.sum().item() == 7 * 6


def test_masked_rows_are_not_counted():
    visits = plain(n_agents=2)
    x = torch.tensor([[[1.0], [1.0]], [[1.0], [-1.0]], [[-1.0], [-1.0]]])
    visits.count(x, torch.tensor([[True, False], [True, True], [False, True]]))
    assert visits(x).tolist() == [[2, 0], [2, 2], [0, 2]]
    visits.count(x, torch.zeros(3, 2, dtype=torch.bool))
    assert visits(x).tolist() == [[2, 0], [2, 2], [0, 2]] and visits.tables.sum() == 4 * 6


def test_agents_count_apart_and_hash_apart():
    torch.manual_seed(0)
    visits, row = SimHash(2, 4), normal(1, 1, 4)
    assert not torch.equal(visits.projection[0], visits.projection[1])
    both = row.expand(1, 2, 4)
    assert not torch.equal(visits.keys(both)[:, 0], visits.keys(both)[:, 1])
    visits.count(both, torch.tensor([[True, False]]))
    assert visits(both).tolist() == [[1, 0]]


def test_the_count_is_the_smallest_of_the_six_cells():
    visits, x = plain(), torch.tensor([[[1.0]]])
    visits.tables[0, :, 1] = torch.tensor([9, 8, 7, 4, 6, 5])
    assert visits(x).item() == 4
    visits.count(x)
    assert visits.tables[0, :, 1].tolist() == [10, 9, 8, 5, 7, 6] and visits(x).item() == 5


def test_counts_never_fall():
    torch.manual_seed(0)
    visits, probe = SimHash(2, 3), normal(50, 2, 3, seed=9)
    last, tables = visits(probe), visits.tables.clone()
    for seed in range(5):
        visits.count(normal(4, 6, 2, 3, seed=seed))
        now = visits(probe)
        assert (now >= last).all() and (visits.tables >= tables).all()
        assert (visits.tables.sum((1, 2)) == 6 * 24 * (seed + 1)).all()
        last, tables = now, visits.tables.clone()


@pytest.mark.parametrize("rows", [(), (4,), (2, 5)])
def test_shapes_of_any_batch(rows):
    visits, x = SimHash(3, 2), normal(*rows, 3, 2)
    visits.count(x)
    assert visits(x).shape == (*rows, 3) and visits(x).dtype == torch.int64 and (visits(x) >= 1).all()


def test_constants_and_types():
    visits = SimHash(2, 3)
    assert (BITS, BUCKETS) == (16, (9931, 9953, 9959, 9961, 9979, 9983))
    assert visits.projection.dtype == torch.float64 and visits.projection.shape == (2, 3, 16)
    assert visits.tables.dtype == torch.int64 and visits.tables.shape == (2, 6, 9983)
    assert not list(visits.parameters())
    assert set(visits.state_dict()) == {"projection", "tables"}


def test_a_sum_in_another_order_has_the_same_code():
    """The sign is taken in float64, so it does not hang on the device's order of summing float32 products."""
    torch.manual_seed(0)
    visits, x = SimHash(1, 64), normal(500, 1, 64)
    turned = SimHash(1, 64)
    turned.projection.copy_(visits.projection.flip(1))
    assert torch.equal(visits.keys(x), turned.keys(x.flip(-1)))
    assert torch.equal(visits.keys(x), visits.keys(x.double()))
    assert torch.equal(visits.keys(x), torch.cat([visits.keys(row) for row in x.split(1)]))


def test_state_dict_continues_exactly():
    torch.manual_seed(0)
    visits, other, x = SimHash(2, 3), SimHash(2, 3), normal(20, 2, 3)
    visits.count(x)
    assert not torch.equal(visits.projection, other.projection)
    other.load_state_dict(visits.state_dict())
    for one in (visits, other):
        one.count(x[:7])
    for name in ("projection", "tables"):
        assert torch.equal(getattr(visits, name), getattr(other, name))
    assert_close(visits(x), other(x))


def test_projections_are_standard_normal_and_follow_the_seed():
    torch.manual_seed(3)
    one = SimHash(4, 100).projection
    torch.manual_seed(3)
    two = SimHash(4, 100).projection
    assert torch.equal(one, two)
    assert abs(one.mean().item()) < 0.05 and abs(one.std().item() - 1) < 0.05
