"""Pictures of Platform and Goal."""

import numpy as np
import torch

from envs.hybrid import goal_rules, platform_rules
from envs.hybrid.drawing import draw_goal, draw_platform


def changed(one, two):
    """Where two pictures differ: the first and last column of it, in shares of the width."""
    columns = np.flatnonzero((one != two).any(axis=(0, 2)))
    return columns[0] / one.shape[1], columns[-1] / one.shape[1]


def test_the_player_of_platform_is_drawn_where_it_is():
    state = platform_rules.Platform(*(x[0] for x in platform_rules.start(1)))
    there = draw_platform(state._replace(x=torch.tensor(600.0)))
    gone = draw_platform(state._replace(x=torch.tensor(-500.0)))
    first, last = changed(there, gone)
    at = (600.0 + 10.0 - 517.5) / 1120.0 + 0.5
    assert first < at < last and last - first < 0.04
    assert there.dtype == np.uint8 and there.shape == (200, 800, 3)


def test_the_ball_of_goal_is_drawn_where_it_is():
    state = goal_rules.Goal(*(x[0] for x in goal_rules.start(torch.tensor([0.5]))))
    away = state.place.clone()
    away[goal_rules.BALL] = torch.tensor([18.0, 8.0])
    first, last = changed(draw_goal(state), draw_goal(state._replace(place=away)))
    assert first < (1.6 - 11.0) / 25.0 + 0.5 and last > (18.0 - 11.0) / 25.4 + 0.5
    assert draw_goal(state, (60, 50)).shape == (60, 50, 3)
