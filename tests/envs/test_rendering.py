"""Drawing in software."""

import numpy as np
import pytest
import torch

from envs import make_env
from envs.rendering import BACKGROUND, Canvas, frame_size

torch.set_num_threads(1)


def test_discs_and_lines_are_where_they_should_be():
    canvas = Canvas((100, 200), center=(1.0, 0.0), half=(2.0, 1.0))  # x from -1 to 3, y from -1 to 1
    canvas.disc((2.0, 0.5), 0.2, (1.0, 0.0, 0.0))
    canvas.line((-0.9, -0.5), (0.9, -0.5), (0.0, 0.0, 1.0), width=4)
    canvas.box((1.0, 0.5), 0.8, 0.2, np.pi / 2, (0.0, 1.0, 0.0))
    frame = canvas.frame()
    assert frame.shape == (100, 200, 3) and frame.dtype == np.uint8
    assert frame[25, 150].tolist() == [255, 0, 0]
    assert frame[75, 50].tolist() == [0, 0, 255]
    assert frame[10, 100].tolist() == [0, 255, 0] and frame[25, 115].tolist() == [round(255 * c) for c in BACKGROUND]


def test_circles_stay_round_in_any_picture():
    canvas = Canvas((50, 150), half=(1.0, 1.0))
    canvas.disc((0.0, 0.0), 0.8, (0.0, 0.0, 0.0))
    dark = canvas.frame().mean(-1) < 128
    assert abs(int(dark.any(0).sum()) - int(dark.any(1).sum())) <= 1


def test_frame_size():
    assert frame_size(None, (2.0, 1.0)) == (256, 512)
    assert frame_size((30, 40), (2.0, 1.0)) == (30, 40)


@pytest.mark.parametrize(("name", "options"), [("navigation", {}), ("balance", {}), ("football", {}), ("passage", {}),
                                               ("ball_trajectory", {}), ("simple_adversary_pe", {})])
def test_worlds(name, options):
    env = make_env(f"vmas/{name}", num_envs=3, seed=0, **options)
    env.rollout(3)
    frames = [env.render_frame(row, size=(96, 96)) for row in range(3)]
    assert all(frame.shape == (96, 96, 3) and frame.std() > 1 for frame in frames)
    assert not np.array_equal(frames[0], frames[1])


def test_drawing_changes_nothing():
    env, twin = (make_env("vmas/navigation", num_envs=3, seed=0) for _ in range(2))
    env.reset_tensors(), twin.reset_tensors()
    env.render_frame(0, lidar=True)
    action = {("agents", "action"): torch.ones(3, 4, 2)}
    one, two = env.step_tensors(action), twin.step_tensors(action)
    assert all(torch.equal(one[key], two[key]) for key in two)
