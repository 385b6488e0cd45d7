"""What actor and critic read of the state model: a latent, of steps that may carry a memory, or somebody else's."""

import pytest
import torch
from torch.testing import assert_close

from suite.modules.policy_input import TEACHER_LATENT, PolicyInput, TeacherInput
from suite.modules.state_model import LATENT, PARTS, PAST, PREV_VALID, GaussianEncoder, StateModel
from suite.specs import ACTION, OBSERVATION, PRIVILEGED
from tests.batches import make_past_batch, make_specs, shaken

torch.set_num_threads(1)
KINDS = ["discrete", "continuous"]
H = 5


def make_model(specs, **options):
    return shaken(StateModel(specs, **dict(latent_dim=3, cells=[8, 6], parts=PARTS, others="all") | options))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("latent", ["mean", "sample", "mean_logstd"])
@pytest.mark.parametrize("with_latent, with_actions", [(True, False), (True, True), (False, True)])
def test_what_the_actor_reads(kind, latent, with_latent, with_actions):
    specs = make_specs(kind)
    model, td = make_model(specs), make_past_batch(specs, 3, 2)  # of whose first steps the past is not valid
    known = model.infer_batch(td)
    torch.manual_seed(3)
    parts = {"mean": [known.mean], "mean_logstd": [known.mean, known.log_sigma],
             "sample": [known.mean + known.log_sigma.exp() * torch.randn(3, 2, 3, 3)]}[latent] if with_latent else []
    if with_actions:
        parts.append(model.action_model.feature(known.action) * td[PREV_VALID])
    torch.manual_seed(3)
    network = PolicyInput(model, latent, with_latent=with_latent, with_actions=with_actions)
    out = network(*(td[key] for key in model.keys))
    assert_close(out, torch.cat(parts, -1).detach())
    assert not out.requires_grad


def test_without_a_memory_nothing_is_carried():
    specs = make_specs("discrete")
    model = make_model(specs)
    network = PolicyInput(model, "mean")
    assert model.keys == [OBSERVATION, *PAST] == network.in_keys and network.out_keys == [LATENT]
    assert network.carried == {} and model.infer_batch(make_past_batch(specs, 2, 3)).memory == ()


@pytest.mark.parametrize("shape", [(7,), (4, 6)])
@pytest.mark.parametrize("with_latent, with_actions", [(True, False), (True, True), (False, True)])
def test_the_policy_takes_single_steps_from_the_states_given(shape, with_latent, with_actions):
    """Also over [N, T], as the value of the next observations needs it."""
    specs = make_specs("discrete")
    model = make_model(specs, memory_dim=H)
    td = make_past_batch(specs, *(shape if len(shape) == 2 else (7, 2)), memory=H)
    td = td if len(shape) == 2 else td[:, 1]
    network = PolicyInput(model, "mean", with_latent=with_latent, with_actions=with_actions)
    latent, *states = network(*(td[key] for key in network.in_keys))
    single = td.reshape(-1)
    known = model.infer(*(single[key] for key in model.keys))
    parts = [known.mean] * with_latent + [known.action.softmax(-1).flatten(-2) * single[PREV_VALID]] * with_actions
    assert_close(latent, torch.cat(parts, -1).unflatten(0, shape))
    for mine, theirs in zip(states, known.memory, strict=True):
        assert torch.equal(mine, theirs.unflatten(0, shape)) and not mine.requires_grad


def test_a_shuffled_latent_leaves_the_memories_alone():
    specs = make_specs("discrete")
    model, td = make_model(specs, memory_dim=H), make_past_batch(specs, 8, 3, memory=H)[:, 1]
    own, *states = PolicyInput(model, "mean")(*(td[key] for key in model.keys))
    other, *same = PolicyInput(model, "mean", shuffle=True)(*(td[key] for key in model.keys))
    rows = torch.cdist(own.flatten(1), other.flatten(1)).argmin(0)
    assert torch.equal(own[rows], other) and not torch.equal(own, other)
    assert all(torch.equal(a, b) for a, b in zip(states, same, strict=True))


# ---------------------------------------------------------------------- gradients


@pytest.mark.parametrize("latent", ["mean", "mean_logstd"])
@pytest.mark.parametrize("grad_to_actions", [False, True])
def test_a_gradient_reaches_the_student_and_nothing_else_if_it_learns(latent, grad_to_actions):
    specs = make_specs("discrete")
    model, td = make_model(specs, grad_to_actions=grad_to_actions), make_past_batch(specs, 5, 2)
    inputs = [td[key] for key in model.keys]
    fixed, learning = (PolicyInput(model, latent, with_actions=True, learns=learns)(*inputs)
                       for learns in (False, True))
    assert torch.equal(fixed, learning) and not fixed.requires_grad
    learning.square().sum().backward()
    learned = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learned == {name for name, _ in model.named_parameters() if name.startswith("student.")}
    with torch.no_grad():
        assert not PolicyInput(model, latent, learns=True)(*inputs).requires_grad


# ---------------------------------------------------------------------- the teacher's latent


@pytest.mark.parametrize("memory_dim", [0, H])
@pytest.mark.parametrize("hidden", [0, 2])
def test_the_critic_reads_the_mean_of_a_teacher_that_knows_no_present_action(hidden, memory_dim):
    specs = make_specs("discrete", hidden_dim=hidden)
    model, td = make_model(specs, memory_dim=memory_dim), make_past_batch(specs, 4, 6, memory=memory_dim)
    seen = (specs.n_agents - 1) * specs.obs_dim + hidden
    teacher = shaken(GaussianEncoder(model.x_dim + model.context_dim + memory_dim + seen, 3, [8]))
    network = TeacherInput(model, teacher, hidden=bool(hidden))
    assert network.out_keys == [TEACHER_LATENT] and (PRIVILEGED in network.in_keys) == bool(hidden)
    assert ACTION not in network.in_keys
    found = network(*(td[key] for key in network.in_keys))
    assert found.shape == (4, 6, 3, 3) and not found.requires_grad
    single = td.reshape(-1)
    known = model.infer_batch(single)
    u = model.scaler(single[OBSERVATION])
    for i, (j, k) in enumerate([(1, 2), (0, 2), (0, 1)]):
        y = [u[:, j], u[:, k], *([single[PRIVILEGED][:, i]] if hidden else [])]
        mean, _ = teacher(*(x[:, i] for x in known.student_inputs), *y)
        assert_close(found.flatten(0, 1)[:, i], mean)
