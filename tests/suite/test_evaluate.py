import numpy as np
import pytest
import torch
from PIL import Image
from tensordict.nn import TensorDictModule
from torch import nn

from suite.evaluate import Evaluator
from suite.modules import make_actor
from suite.specs import ACTION, GROUP, OBSERVATION, SUCCESS, Specs
from tests.toy import ToyEnv

N, A = 5, 2


class DrawnEnv(ToyEnv):
    """A picture is a plain colour: the number of steps so far in the first copy."""

    def render_frame(self, env_index=0, size=(64, 64)):
        assert env_index == 0
        return np.full((*size, 3), 20 * int(self.steps[0]), dtype=np.uint8)


def policy(env, recurrent=0):
    torch.manual_seed(0)
    return make_actor(Specs.from_env(env), {}, share="all", agent_id=True, cells=(8,), activation="tanh",
                      init="default",
                      recurrent_dim=recurrent, head="tanh_normal", state_dependent_scale=True, device="cpu")


def constant(env, value):
    """A policy that always takes the same action."""
    spec = env.full_action_spec[ACTION]
    return TensorDictModule(lambda x: torch.full((*x.shape[:2], *spec.shape[2:]), value, dtype=spec.dtype),
                            in_keys=[OBSERVATION], out_keys=[ACTION])


def test_returns_and_lengths_by_hand():
    """Standing still: the distance at the start, once per step; an episode that has ended counts no more."""
    env = ToyEnv(N, A, max_steps=4, seed=9)
    found = Evaluator(env, constant(env, 0.0), seed=3)()
    other = ToyEnv(N, A, max_steps=4)
    other.set_seed(3)
    other.reset_tensors()
    distance = (other.at - other.target).norm(dim=-1)  # [N, A]
    assert found["return"] == found["return_greedy"] == pytest.approx(-4 * distance.mean().item(), rel=1e-6)
    assert found["length"] == 4


def test_an_ended_episode_counts_no_more():
    class Ends(ToyEnv):
        """Copy k terminates after k + 1 steps; every step pays 1."""

        def _simulate(self, actions):
            return torch.ones(N, A), self.steps >= torch.arange(N)

    env = Ends(N, A, max_steps=4)
    found = Evaluator(env, constant(env, 0.0), seed=3)()
    assert found == pytest.approx(dict.fromkeys(("length", "return", "return_greedy"), (1 + 2 + 3 + 4 + 4) / N))


@pytest.mark.parametrize("recurrent", [0, 6])
def test_the_same_result_twice_and_nothing_else_is_touched(recurrent):
    env = ToyEnv(N, A)
    evaluator = Evaluator(env, policy(env, recurrent), seed=3)
    before = torch.get_rng_state()
    first = evaluator()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)  # the training has moved on
    assert evaluator() == first
    assert first["return"] != first["return_greedy"]


def test_a_simulator_that_remembers_starts_from_its_first_state_each_time():
    """Episodes get harder with every reset; neither seed nor reset takes that back."""
    class Remembers(ToyEnv):
        resets = 0

        def _restart(self, mask):
            self.resets += 1
            super()._restart(mask)

        def _simulate(self, actions):
            reward, over = super()._simulate(actions)
            return reward - self.resets, over

        def _capture(self):
            return super()._capture() | {"resets": self.resets}

        def _restore(self, state, mask=None):
            self.resets = state["resets"]
            super()._restore(state, mask)

    env = Remembers(N, A, max_steps=4)
    evaluator = Evaluator(env, constant(env, 0.0), seed=3)
    first, plain = evaluator(), Evaluator(ToyEnv(N, A, max_steps=4), constant(env, 0.0), seed=3)()
    assert first["return"] == first["return_greedy"] == pytest.approx(plain["return"] - 4, rel=1e-6)  # one reset
    assert evaluator() == first and evaluator.play(deterministic=True)["return"] == first["return_greedy"]
    used = Remembers(N, A, max_steps=4)
    used.resets = 7  # what it is when the evaluator gets it, not what a new one would be
    assert Evaluator(used, constant(used, 0.0), seed=3)()["return"] == pytest.approx(first["return"] - 4 * 7, rel=1e-6)


def test_any_carried_key_is_handed_on():
    """The policy counts its own steps and acts on the count; the first action of an episode is 0."""
    class Count(nn.Module):
        carried = {"clock": (1,)}  # noqa: RUF012

        def forward(self, clock, observation):
            return (0.1 * clock).unsqueeze(1).expand(*observation.shape[:2], 2), clock + 1

    seen = []

    class Spy(ToyEnv):
        def _simulate(self, actions):
            seen.append(actions[ACTION][0, 0, 0].item())
            return super()._simulate(actions)

    env = Spy(N, A, max_steps=4)
    policy = TensorDictModule(Count(), in_keys=["clock", OBSERVATION], out_keys=[ACTION, ("next", "clock")])
    Evaluator(env, policy, seed=3)()
    assert seen == pytest.approx([0.0, 0.1, 0.2, 0.3])  # once: nothing is sampled


def test_greedy_takes_the_mode_and_sampled_the_seeds_sample():
    env = ToyEnv(N, A, max_steps=1)
    actor = policy(env)
    evaluator = Evaluator(env, actor, seed=3)
    seen = []

    class Spy(ToyEnv):
        def _simulate(self, actions):
            seen.append(actions[ACTION])
            return super()._simulate(actions)

    evaluator.env = Spy(N, A, max_steps=1)
    evaluator.play(deterministic=True)
    evaluator.play(deterministic=False)
    env.set_seed(3)
    td = env.reset()
    torch.manual_seed(3)
    with torch.no_grad():
        dist = actor.get_dist(td.clone())
        sample = actor(td.clone())[ACTION]
    assert torch.allclose(seen[0], dist.mode) and torch.allclose(seen[1], sample)
    assert not torch.allclose(seen[0], seen[1])


def test_another_seed_is_another_set_of_episodes():
    env = ToyEnv(N, A)
    assert Evaluator(env, policy(env), seed=3)() != Evaluator(env, policy(env), seed=4)()


def test_the_policy_is_evaluated_as_it_is_now():
    env = ToyEnv(N, A)
    actor = policy(env)
    evaluator = Evaluator(env, actor, seed=3)
    before = evaluator()
    with torch.no_grad():
        for param in actor.parameters():
            param.mul_(-1)
    assert evaluator()["return_greedy"] != before["return_greedy"]
    assert all(param.grad is None for param in actor.parameters())


def test_recurrent_state_is_carried_through_the_episode():
    env = ToyEnv(N, A, max_steps=6)
    actor = policy(env, recurrent=6)
    found = Evaluator(env, actor, seed=3).play(deterministic=True)
    env.set_seed(3)
    observation, hidden, total = env.reset_tensors()[OBSERVATION], torch.zeros(N, A, 6), torch.zeros(N)
    network = actor[0].module
    for t in range(6):
        with torch.no_grad():
            loc, _, hidden = network(observation, hidden, torch.full((N, 1), t == 0))
        out = env.step_tensors({ACTION: torch.tanh(loc)})
        observation, total = out[OBSERVATION], total + out[GROUP, "reward"].mean((-2, -1))
    assert found["return"] == pytest.approx(total.mean().item(), rel=1e-5)


def test_a_gif_of_one_greedy_episode(tmp_path):
    env = DrawnEnv(N, A, max_steps=7)
    path = Evaluator(env, policy(env), seed=3).video(tmp_path / "new" / "x.gif", size=(32, 32))
    with Image.open(path) as gif:
        assert gif.format == "GIF" and gif.n_frames == 8 and gif.size == (32, 32)
        shades = []
        for k in range(8):
            gif.seek(k)
            shades.append(gif.convert("RGB").getpixel((5, 5))[0])
    assert shades == pytest.approx([20 * k for k in range(8)], abs=3)  # the last one is how it ended


def test_the_film_ends_with_the_first_copys_episode(tmp_path):
    class Ends(DrawnEnv):
        def _simulate(self, actions):
            return torch.ones(N, A), self.steps >= 2 + 3 * torch.arange(N)

    env = Ends(N, A, max_steps=20)
    frames = []
    Evaluator(env, constant(env, 0.0), seed=3).play(deterministic=True, frames=frames, size=(8, 8))
    assert len(frames) == 4


def test_success_is_the_share_of_episodes_in_which_it_came_about():
    """Copy k reaches its goal at step k + 1, before all end at step 3: three of five; what comes later counts not."""
    class Reaches(ToyEnv):
        def step_tensors(self, actions):
            out = super().step_tensors(actions)
            return out | {SUCCESS: (self.steps == torch.arange(N) + 1).unsqueeze(-1)}

    env = Reaches(N, A, max_steps=3)
    assert Evaluator(env, constant(env, 0.0), seed=3)()["success"] == pytest.approx(3 / 5)
    assert "success" not in Evaluator(ToyEnv(N, A, max_steps=3), constant(env, 0.0), seed=3)()


def test_of_a_policy_that_samples_both_successes_are_told():
    """The choice alone decides: greedy agents always reach it, sampled ones as the draws have it."""
    class Chooses(ToyEnv):
        def step_tensors(self, actions):
            return super().step_tensors(actions) | {SUCCESS: (actions[ACTION] == 0).all(-1, keepdim=True)}

    env = Chooses(400, 1, max_steps=1, is_discrete=True)
    actor = policy(env)
    with torch.no_grad():
        actor[0].module.out.weight.zero_()
        logits = actor[0].module.out.bias.zero_()
        logits[0] = 1.0
    found = Evaluator(env, actor, seed=3)()
    chance = logits.softmax(0)[0].item()
    assert found["success"] == 1.0 and found["success_sampled"] == pytest.approx(chance, abs=0.1)
    assert "success_sampled" not in Evaluator(env, constant(env, 0), seed=3)()  # nothing is sampled


# ---------------------------------------------------------------------- fresh starts

def test_fresh_evaluations_follow_from_seed_and_frames_alone():
    env = ToyEnv(N, A)
    actor = policy(env)
    evaluator = Evaluator(env, actor, seed=3, fresh=True)
    rows = {frames: evaluator(frames) for frames in (0, 10, 20)}
    assert len({row["return_greedy"] for row in rows.values()}) == 3, "the same policy, other starts"
    assert len({row["return"] for row in rows.values()}) == 3
    late = Evaluator(ToyEnv(N, A, seed=8), actor, seed=3, fresh=True)  # as a resumed run makes it
    assert late(20) == rows[20] and evaluator(10) == rows[10]
    assert Evaluator(env, actor, seed=4, fresh=True)(20) != rows[20]


def test_a_fresh_evaluation_is_that_of_its_seed():
    env = ToyEnv(N, A)
    fresh = Evaluator(env, policy(env), seed=3, fresh=True)
    seeds = [fresh.seed_after(frames) for frames in range(0, 4000, 40)]
    assert len(set(seeds)) == 100 and all(0 <= seed < 2**31 for seed in seeds)
    assert fresh(40) == Evaluator(env, policy(env), seed=seeds[1])(77)


def test_without_fresh_starts_the_frames_change_nothing():
    env = ToyEnv(N, A)
    evaluator = Evaluator(env, policy(env), seed=3)
    assert evaluator.seed_after(40) == 3 and evaluator(0) == evaluator(40) == evaluator()


def test_fresh_evaluations_change_nothing_else():
    env = ToyEnv(N, A)
    evaluator, before = Evaluator(env, policy(env), seed=3, fresh=True), torch.get_rng_state()
    evaluator(10)
    assert torch.equal(torch.get_rng_state(), before)
