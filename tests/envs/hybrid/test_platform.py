"""Platform as an environment: what random play gives, limits, options, pictures."""

import pytest
import torch

from envs import make_env
from envs.base import CHOICE, OBSERVATION, PARAMS, REWARD

torch.set_num_threads(1)


def make(num_envs=5, **options):
    return make_env("hybrid/platform", **{"num_envs": num_envs, "seed": 0} | options)


def actions(env, choice, param):
    n = env.num_envs
    return {CHOICE: torch.full((n, 1), choice), PARAMS: torch.full((n, 1, 1), float(param))}


def first_episodes(env, steps):
    """Return, length and success of the first episode of every row, played at random; all must end."""
    generator = torch.Generator().manual_seed(1)
    n, width = env.num_envs, env.full_action_spec[PARAMS].shape[-1]
    total, length, success = torch.zeros(n), torch.zeros(n), torch.zeros(n, dtype=torch.bool)
    live = torch.ones(n, dtype=torch.bool)
    env.reset_tensors()
    for _ in range(steps):
        choice = torch.randint(env.full_action_spec[CHOICE].n, (n, 1), generator=generator)
        out = env.step_tensors({CHOICE: choice, PARAMS: 2 * torch.rand(n, 1, width, generator=generator) - 1})
        total, length = total + live * out[REWARD].flatten(), length + live
        success |= live & out["success"].flatten()
        live = live & ~out["done"].flatten()
        if not live.any():
            return total, length, success
    raise AssertionError(f"{int(live.sum())} episodes are not over")


def test_random_play():
    """The published anchor: return 0.154 with deviation 0.102 in 1000 episodes, length 2.18, no success."""
    total, length, success = first_episodes(make(3000), 30)
    error = 0.102 * (1 / 1000 + 1 / 3000) ** 0.5
    assert abs(total.mean() - 0.154) < 3 * error and abs(total.std() - 0.102) < 0.02
    assert abs(length.mean() - 2.18) < 3 * length.std() * (1 / 1000 + 1 / 3000) ** 0.5
    assert success.float().mean() < 0.005


def test_the_shapes_of_actions_and_observations():
    env = make()
    assert env.param_mask.tolist() == [[True]] * 3 and env.max_steps == 200
    seen = env.reset_tensors()[OBSERVATION]
    assert seen.shape == (5, 1, 9) and seen.dtype == torch.float32 and seen.abs().max() <= 1
    assert (seen == seen[0]).all()  # every episode begins at the same place


def test_who_stands_still_meets_the_enemy():
    env = make()
    env.reset_tensors()
    for _ in range(8):
        out = env.step_tensors(actions(env, 0, -1.0))
    assert out["terminated"].all() and not out["success"].any() and out[REWARD].abs().max() == 0


def test_the_future_of_a_row_does_not_depend_on_the_others():
    one, two = make(40), make(40)
    one.reset_tensors(), two.reset_tensors()
    mixed = actions(one, 1, -0.5)
    other = {key: value.clone() for key, value in mixed.items()}
    other[CHOICE][10:] = 2
    for _ in range(3):
        a, b = one.step_tensors(mixed), two.step_tensors(other)
        two.reset_tensors(torch.arange(40) >= 30)
        assert torch.equal(a[OBSERVATION][:10], b[OBSERVATION][:10])


@pytest.mark.parametrize("backend", ["aot_eager"])
def test_compiled_is_the_same(backend):
    one, two = make(30), make(30, compile=backend)
    one.reset_tensors(), two.reset_tensors()
    a, b = one.step_tensors(actions(one, 2, 0.0)), two.step_tensors(actions(two, 2, 0.0))
    torch.testing.assert_close(a[OBSERVATION], b[OBSERVATION], rtol=0, atol=1e-5)


def test_options_and_rows_that_do_not_exist():
    with pytest.raises(ValueError, match=r"hybrid/platform has no option 'gravity'; it has \['compile'\]"):
        make(gravity=9.8)
    with pytest.raises(ValueError, match=r"env_index must be in \[0, 4\], got 5"):
        make().render_frame(5)


def test_picture():
    env = make()
    before = env.render_frame(0)
    env.step_tensors(actions(env, 1, -0.7))
    after = env.render_frame(0, size=(100, 400))
    assert before.shape[2] == 3 and before.dtype == "uint8" and after.shape == (100, 400, 3)
    assert (env.render_frame(0) != before).any()
