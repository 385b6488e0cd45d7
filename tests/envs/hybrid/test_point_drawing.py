import numpy as np
import pytest
import torch

from envs import make_env
from envs.hybrid.point_drawing import draw_point

torch.set_num_threads(1)


def differ(one, two):
    """Where two pictures differ: the middle (x, y), in shares of the picture, y up."""
    rows, cols = np.nonzero((one != two).any(-1))
    return cols.mean() / one.shape[1], 1 - rows.mean() / one.shape[0]


def test_body_and_target_are_where_they_should_be():
    empty = draw_point((0.0, -1.0), (0.0, -1.0), 0.1, (240, 240))
    for point, share in (((0.6, 0.0), (0.75, 0.5)), ((-0.6, 0.9), (0.25, 0.875))):
        both = draw_point(point, point, 0.1, (240, 240))
        rows, cols = np.nonzero((both != empty).any(-1))
        here = rows < 200  # not where they were
        assert cols[here].mean() / 240 == pytest.approx(share[0], abs=0.02)
        assert 1 - rows[here].mean() / 240 == pytest.approx(share[1], abs=0.02)


def test_the_view_grows_with_what_is_far_away():
    near, far = draw_point((0.0, 0.0), (0.5, 0.0), 0.2), draw_point((0.0, 0.0), (5.0, 0.0), 0.2)
    assert near.shape == far.shape == (512, 512, 3) and near.dtype == np.uint8
    assert (far != draw_point((0.0, 0.0), (5.0, 3.0), 0.2)).any()


def test_what_else_is_shown():
    plain = draw_point((0.0, 0.0), (0.5, 0.0), 0.2)
    x, y = differ(plain, draw_point((0.0, 0.0), (0.5, 0.0), 0.2, motion=(0.0, 0.8)))
    assert x == pytest.approx(0.5, abs=0.02) and y < 0.5  # a tail behind the body
    assert differ(plain, draw_point((0.0, 0.0), (0.5, 0.0), 0.2, dots=(3, 11)))[1] > 0.9
    for more in ({"heading": 1.0}, {"fenced": True}):
        assert (plain != draw_point((0.0, 0.0), (0.5, 0.0), 0.2, **more)).any()
    one, two = (draw_point((0.0, 0.0), (0.5, 0.0), 0.2, dots=(k, 11)) for k in (3, 4))
    assert (one != two).any()


@pytest.mark.parametrize("task", ["catch_point", "simple_move", "hard_move-10", "actuators-4", "moving", "sliding"])
def test_frames_of_every_task(task):
    env = make_env(f"hybrid/{task}", num_envs=2)
    first = env.render_frame(1)
    assert first.shape == (512, 512, 3) and first.dtype == np.uint8 and first.std() > 5
    assert env.render_frame(0, (60, 90)).shape == (60, 90, 3)
    assert (env.render_frame(0) != first).any()
    for row in (-1, 2):
        with pytest.raises(ValueError, match=rf"env_index must be in \[0, 1\], got {row}"):
            env.render_frame(row)
