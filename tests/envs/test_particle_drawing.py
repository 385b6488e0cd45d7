"""Pictures of the particle world."""

import numpy as np
import pytest
import torch

from envs import make_env
from envs.particle_drawing import BLUE


@pytest.mark.parametrize("name", ["spread-3", "climbing_spread", "doublespread-4", "navigation-8"])
def test_pictures_show_something(name):
    env = make_env(f"particle/{name}", num_envs=2)
    frame = env.render_frame()
    assert frame.dtype == np.uint8 and frame.shape == (512, 512, 3)
    assert len(np.unique(frame.reshape(-1, 3), axis=0)) > 25
    assert env.render_frame(1, size=(60, 80)).shape == (60, 80, 3)
    assert not np.array_equal(frame, env.render_frame(1))


def test_an_agent_is_where_it_is():
    env = make_env("particle/spread-1", num_envs=1)
    env.places, env.velocity = torch.zeros(2, 2, 1), torch.zeros(1, 2, 1)
    env.places[0, :, 0] = torch.tensor([0.6, 0.6])  # a quarter in from the right and from the top of [-1.2, 1.2]²
    frame = env.render_frame(size=(400, 400))
    assert frame[100, 315].tolist() == pytest.approx([255 * c for c in BLUE], abs=2)  # beside the dot in its middle
    assert frame[300, 315].tolist() != frame[100, 315].tolist()


def test_the_view_grows_with_the_world():
    env = make_env("particle/spread-2", num_envs=1)
    near = env.render_frame()
    env.places = env.places * 5
    assert not np.array_equal(near, env.render_frame())
    assert (env.render_frame()[0] > 200).all()  # nothing is cut off at the border


def test_rays_that_hit_are_drawn():
    env = make_env("particle/navigation-2", num_envs=1)
    env.places = torch.tensor([[0.0, 0.0], [0.35, 0.0], [-0.9, -0.9], [0.9, -0.9]])[..., None]
    assert not np.array_equal(env.render_frame(), env.render_frame(lidar=False))


def test_a_row_that_does_not_exist():
    with pytest.raises(ValueError, match=r"env_index must be in \[0, 1\], got 2"):
        make_env("particle/spread-3", num_envs=2).render_frame(2)
