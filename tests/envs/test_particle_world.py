"""Physics, sensors and actions of the particle world, against numbers worked out by hand."""

import math

import pytest
import torch

from envs.particle_world import Choices, Lidar, Pushes, Thrust, World, batch_first, batch_last, length, others

torch.set_num_threads(1)

CPU = torch.device("cpu")


def points(*rows):
    """[E, 2, N] from one list of places per environment."""
    return torch.tensor(rows, dtype=torch.float32).permute(1, 2, 0).contiguous()


def test_the_batch_moves_to_the_front_and_back():
    rows = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(batch_first(rows), rows.permute(2, 0, 1)) and batch_first(rows).is_contiguous()
    assert torch.equal(batch_last(batch_first(rows)), rows)


def test_others():
    assert others(3, CPU).tolist() == [[1, 2], [0, 2], [0, 1]]
    assert others(1, CPU).shape == (1, 0)


def test_free_motion():
    force, place, speed = points([[1.0, 0.0]]), points([[0.0, 0.0]]), points([[0.0, 2.0]])
    moved, velocity = World(1, CPU, reach=None).move(place, speed, force)
    assert velocity.flatten().tolist() == pytest.approx([0.1, 1.5])
    assert moved.flatten().tolist() == pytest.approx([0.01, 0.15])
    moved, velocity = World(1, CPU, reach=None, position_first=True).move(place, speed, force)
    assert velocity.flatten().tolist() == pytest.approx([0.1, 1.5])
    assert moved.flatten().tolist() == pytest.approx([0.0, 0.2])
    moved, velocity = World(1, CPU, reach=None, substeps=2).move(place, speed, force)
    assert velocity.flatten().tolist() == pytest.approx([0.1, 1.5])
    assert moved.flatten().tolist() == pytest.approx([0.05 * 0.05 + 0.05 * 0.1, 0.15])


def test_bounds():
    world = World(1, CPU, reach=None, bounds=(0.5, 0.25))
    moved, _ = world.move(points([[0.49, -0.24]]), points([[5.0, -5.0]]), points([[0.0, 0.0]]))
    assert moved.flatten().tolist() == [0.5, -0.25]


@pytest.mark.parametrize(("gap", "hard", "soft"), [(0.0, 100e-3 * math.log(2), 100e-3 * math.log(2)),
                                                   (-0.1, 10.0, 10.0), (0.001, 0.0, 0.1 * math.log1p(math.exp(-1)))])
def test_contact_force(gap, hard, soft):
    place = points([[0.0, 0.0], [0.25 + gap, 0.0]])
    for everywhere, size in ((False, hard), (True, soft)):
        force = World(2, CPU, reach=0.25, soft_everywhere=everywhere).contact_force(place, 0.25)[..., 0]
        assert force.flatten().tolist() == pytest.approx([-size, 0.0, size, 0.0], rel=1e-3)


def test_coincident_discs_do_not_push():
    force = World(3, CPU, reach=0.3).contact_force(points([[0.1, 0.1]] * 3), 0.3)
    assert (force == 0).all()


def test_forces_of_many_add_up():
    """Three discs in a row: the middle one is pushed from both sides, the outer ones apart."""
    force = World(3, CPU, reach=0.3).contact_force(points([[-0.2, 0.0], [0.0, 0.0], [0.2, 0.0]]), 0.3)[:, 0, 0]
    assert force.tolist() == pytest.approx([-10.0, 0.0, 10.0], rel=1e-5)


def test_lidar():
    lidar = Lidar(4, 0.35, 0.1, CPU)
    offset = torch.stack([points([[0.3, 0.0], [0.0, -0.2]]), points([[0.25, 0.06], [9.0, 9.0]]),
                          points([[0.05, 0.0], [9.0, 9.0]])])
    right, up, left, down = lidar.measure(offset).unbind(1)  # of three agents
    assert right[:, 0].tolist() == pytest.approx([0.15, 0.35 - (0.25 - 0.08), 0.4])  # the last is inside a disc
    assert left.tolist() == [[0.0]] * 3
    assert down[:2, 0].tolist() == pytest.approx([0.25, 0.0])
    assert up[:2, 0].tolist() == [0.0, 0.0]


def test_lidar_takes_the_nearest():
    one = Lidar(8, 0.5, 0.1, CPU).measure(points([[0.3, 0.3], [0.2, 0.2], [0.25, 0.25]])[None])
    assert one[0, 1, 0].item() == pytest.approx(0.5 - (0.2 * math.sqrt(2) - 0.1))
    assert (Lidar(8, 0.5, 0.1, CPU).measure(torch.zeros(1, 0, 2, 5)) == 0).all()


def test_length():
    assert length(points([[3.0, 4.0], [0.0, 0.0]])).flatten().tolist() == [5.0, 0.0]


def test_actions():
    assert Thrust(2.0, CPU).forces(torch.tensor([[[0.5, -3.0]]])).flatten().tolist() == [1.0, -2.0]
    assert Pushes(5.0, CPU).forces(torch.tensor([[[1.0, 0.0, 0.5, 1.0, 0.0]]])).flatten().tolist() == [2.5, -5.0]
    table = Choices([(0.0, 0.0), (1.0, 0.0), (0.0, -1.0)], 5.0, CPU)
    assert table.forces(torch.tensor([[1, 2]])).squeeze(2).tolist() == [[5.0, 0.0], [0.0, -5.0]]
    assert table.spec(2).n == 3
    assert Pushes(5.0, CPU).spec(2).shape == (2, 5) and Thrust(1.0, CPU).spec(4).shape == (4, 2)
