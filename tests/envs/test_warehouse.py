"""The family of robot warehouses: names, options, resets, time limits, saved states, pictures, one graph."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from envs import make_env
from envs.base import ACTION, OBSERVATION, REWARD
from envs.warehouse import KNOWN
from envs.warehouse_layout import SIZES, from_sizes
from envs.warehouse_rules import FORWARD, TOGGLE, Floor, advance, draw_requests, make_tables, observe, shelf_cells

torch.set_num_threads(1)

PLAN = "x.x\n.g."


def make(name="tiny-4ag", num_envs=6, **options):
    return make_env(f"warehouse/{name}", num_envs=num_envs, **options)


def actions(env, seed=0):
    spec = env.full_action_spec[ACTION]
    return {ACTION: torch.randint(spec.n, spec.shape, generator=torch.Generator().manual_seed(seed))}


def same(one, two, rows=slice(None)):
    return all(torch.equal(a[rows], b[rows]) for a, b in zip(one, two, strict=True))


# ---------------------------------------------------------------------- names and options

@pytest.mark.parametrize(("name", "size", "agents", "requests", "sight"), [
    ("tiny-2ag-hard", "tiny", 2, 1, 1), ("tiny-4ag-hard", "tiny", 4, 2, 1), ("small-4ag-hard", "small", 4, 2, 1),
    ("small-4ag", "small", 4, 4, 1), ("medium-3ag-easy", "medium", 3, 6, 1), ("large-19ag", "large", 19, 19, 1),
    ("tiny-3ag-hard", "tiny", 3, 1, 1), ("rware-tiny-2ag-hard-v1", "tiny", 2, 1, 1), ("2s-tiny-2ag", "tiny", 2, 2, 2),
    ("rware-5s-large-8h-4ag-easy-v2", "large", 4, 8, 5), ("1x3-8h-4ag-6req-indiv", "tiny", 4, 6, 1),
    ("tiny-2ag-normal", "tiny", 2, 2, 1)])
def test_names(name, size, agents, requests, sight):
    env = make(name, num_envs=1)
    assert env.rules.layout == from_sizes(*SIZES[size])
    assert (env.n_agents, env.rules.requests, env.rules.sensor_range) == (agents, requests, sight)
    assert env.full_observation_spec[OBSERVATION].shape == (1, agents, 8 + 7 * (2 * sight + 1) ** 2)
    assert env.full_action_spec[ACTION].n == 5 and env.max_steps == 500 and not env.reward_is_shared
    assert env.agent_types == (0,) * agents


def test_known_names_are_known():
    for name in KNOWN:
        make(name, num_envs=1)


def test_options():
    env = make("2x5-4h-3ag-2req-global", max_steps=7)
    assert env.rules.layout == from_sizes(2, 5, 4) and env.rules.reward_type == "global" and env.reward_is_shared
    assert env.max_steps == 7
    env = make("tiny-2ag", sensor_range=2, reward_type="two_stage", request_queue_size=5, max_inactivity=9,
               shelf_rows=2, column_height=3, normalize_coordinates=True, conflicts="exact")
    assert env.rules.layout == from_sizes(2, 3, 3)
    assert (env.rules.requests, env.rules.max_inactivity, env.rules.reward_type) == (5, 9, "two_stage")
    seen = env.reset_tensors()[OBSERVATION]
    assert seen.shape == (6, 2, 183) and seen.min() >= 0 and seen.max() <= 1
    env = make("custom-1ag", layout=PLAN)
    assert env.rules.layout.lines == ("x.x", ".g.")
    assert make("tiny-1ag", num_envs=1).reward_is_shared


@pytest.mark.parametrize(("name", "options", "match"), [
    ("tiny-2ag-hrad", {}, "unknown warehouse task 'tiny-2ag-hrad'.*'tiny-2ag-hard'.*did you mean 'tiny-2ag-hard'"),
    ("tiny", {}, "unknown warehouse task 'tiny'"),
    ("tiny-ag", {}, "unknown warehouse task 'tiny-ag'"),
    ("tiny-2ag-hard-v3", {}, "unknown warehouse task"),
    ("tny-2ag", {}, r"unknown size 'tny': choose from \['tiny', .*'custom'\].*did you mean 'tiny'"),
    ("tiny-0ag", {}, "n_agents must be a positive integer, got 0"),
    ("tiny-111ag", {"request_queue_size": 2}, "111 agents do not fit on 110 cells"),
    ("0s-tiny-2ag", {}, "sensor_range must be a positive integer, got 0"),
    ("tiny-2ag", {"sensor_range": 0}, "sensor_range must be a positive integer, got 0"),
    ("tiny-1ag-hard", {}, "must hold 1 to 31 of the 32 shelves, .*got 0"),
    ("tiny-16ag-easy", {}, "must hold 1 to 31 of the 32 shelves, .*got 32"),
    ("tiny-2ag", {"request_queue_size": 33}, "must hold 1 to 31 .*got 33"),
    ("tiny-2ag", {"request_queue_size": 1.5}, "must hold 1 to 31 .*got 1.5"),
    ("tiny-2ag", {"request_queue_size": True}, "must hold 1 to 31 .*got True"),
    ("1x1-2ag", {}, "a layout needs 2 to 4095 shelves, got 0"),
    ("1x2-2ag", {}, "shelf_columns must be odd, .*got 2"),
    ("tiny-0h-2ag", {}, "column_height must be a positive integer, got 0"),
    ("tiny-2ag", {"reward_type": "globl"}, r"\['individual', 'global', 'two_stage'\], got 'globl'; did you mean"),
    ("tiny-2ag", {"conflicts": "first"}, r"conflicts must be one of \['index', 'exact'\], got 'first'"),
    ("tiny-2ag", {"max_inactivity": 0}, "max_inactivity must be a positive integer, got 0"),
    ("tiny-2ag", {"normalize_coordinates": 1}, "normalize_coordinates of warehouse/tiny-2ag must be True or "
                                                "False, got 1"),
    ("tiny-2ag", {"shelf_rows": None}, "shelf_rows of warehouse/tiny-2ag must be an integer, got None"),
    ("tiny-2ag", {"with_hidden": "no"}, "with_hidden of warehouse/tiny-2ag must be True or False, got 'no'"),
    ("tiny-2ag", {"sensor_rnge": 2}, "no option 'sensor_rnge'; it has .*did you mean 'sensor_range'"),
    ("tiny-2ag", {"layout": PLAN}, "the option layout needs the size 'custom', got the size 'tiny'"),
    ("custom-2ag", {}, "'custom' takes the option layout, a text.*layout=None"),
    ("custom-2ag", {"layout": PLAN, "shelf_rows": 2}, "neither shelf_rows nor .*got .*'shelf_rows': 2"),
    ("custom-2ag", {"layout": PLAN, "column_height": 2}, "neither shelf_rows nor .*got .*'column_height': 2"),
    ("custom-2ag", {"layout": 3}, "'custom' takes the option layout, a text.*layout=3"),
    ("custom-1ag", {"layout": "x.x\n..."}, "at least one goal"),
])
def test_bad_input(name, options, match):
    with pytest.raises(ValueError, match=match):
        make(name, **options)


# ---------------------------------------------------------------------- episodes

def test_the_exact_rule_plays_too():
    """Rows without ties are the same under both rules."""
    one, two = make(num_envs=16, seed=2), make(num_envs=16, seed=2, conflicts="exact")
    one.reset_tensors(), two.reset_tensors()
    for t in range(30):
        a, b = one.step_tensors(actions(one, t)), two.step_tensors(actions(two, t))
    assert (a[OBSERVATION] == b[OBSERVATION]).flatten(1).all(1).float().mean() > 0.5


def test_partial_reset():
    env = make(num_envs=6, request_queue_size=3)
    env.reset_tensors()
    for t in range(20):
        seen = env.step_tensors(actions(env, t))[OBSERVATION]
    mask = torch.tensor([True, False, False, True, False, False])
    before = env.floor
    after = env.reset_tensors(mask)[OBSERVATION]
    assert torch.equal(after[~mask], seen[~mask]) and (after[mask] != seen[mask]).flatten(1).any(1).all()
    assert same(env.floor, before, ~mask)
    assert (env.floor.load[mask] == 0).all() and (env.floor.idle[mask] == 0).all()
    assert (shelf_cells(env.tables, env.floor)[mask] == env.tables.shelves.nonzero().T).all()
    assert torch.equal(env.reset_tensors(torch.zeros(6, dtype=torch.bool))[OBSERVATION], after)
    env.cheap_reset = True  # as on a GPU
    again = env.reset_tensors(mask)[OBSERVATION]
    assert torch.equal(again[~mask], seen[~mask]) and (again[mask] != after[mask]).flatten(1).any(1).all()
    assert same(env.floor, before, ~mask)


def test_inactivity_is_truncation():
    noop = {ACTION: torch.zeros(6, 4, dtype=torch.int64)}
    for truncate in (True, False):
        env = make(max_inactivity=3, truncate=truncate)
        env.reset_tensors()
        outs = [env.step_tensors(noop) for _ in range(3)]
        assert not outs[1]["done"].any() and outs[2]["done"].all()
        assert outs[2]["truncated"].all() == truncate and outs[2]["terminated"].any() != truncate


@pytest.mark.parametrize(("reward_type", "paid"), [
    ("individual", [[0, 1], [0, 0]]), ("global", [[1, 1], [0, 0]]), ("two_stage", [[0, 0.5], [0, 0.5]])])
def test_rewards(reward_type, paid):
    """The second robot delivers shelf 1, takes it back and puts it down."""
    env = make("custom-2ag", num_envs=1, layout="g.x\n.xx", request_queue_size=1, reward_type=reward_type)
    env.reset_tensors()
    at = env.tables.cells.view(2, 3)
    floor, ids = env.floor, torch.tensor([[1, 2, 3]], dtype=torch.int16)
    env.floor = floor._replace(cell=torch.stack([at[1, 0], at[0, 1]])[None], heading=torch.tensor([[0, 2]]),
                               load=torch.tensor([[0, 1]], dtype=torch.int16), order=ids,
                               shelves=floor.shelves.masked_fill(floor.shelves == 1, 0))
    deliver, *back = [FORWARD, 2, 2, FORWARD, FORWARD, TOGGLE]  # two turns to the left
    paid_out = env.step_tensors({ACTION: torch.tensor([[0, deliver]])})[REWARD].squeeze(-1).tolist()
    for action in back:
        later = env.step_tensors({ACTION: torch.tensor([[0, action]])})[REWARD].squeeze(-1).tolist()
    assert paid_out + later == paid
    assert (env.floor.load == 0).all() and env.floor.order[0, 0] != 1
    assert env.floor.shelves[0, at[0, 2]] == 1


# ---------------------------------------------------------------------- saved states, devices, graphs

def test_saved_state():
    env, other = make(seed=1), make(seed=2)
    env.reset_tensors()
    env.step_tensors(actions(env))
    other.load_state_dict(env.state_dict())
    for t in range(20):
        one, two = env.step_tensors(actions(env, t)), other.step_tensors(actions(env, t))
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert same(env.floor, other.floor)
    assert torch.equal(env.reset_tensors()[OBSERVATION], other.reset_tensors()[OBSERVATION])


def test_restoring_some_rows():
    env = make()
    env.reset_tensors()
    saved, before = env._capture(), env.floor
    env.step_tensors(actions(env))
    after, rows = env.floor, torch.arange(6) < 2
    env._restore(saved, rows)
    assert same(env.floor, before, rows) and same(env.floor, after, ~rows)


def test_a_state_of_another_warehouse_is_refused():
    with pytest.raises(ValueError, match=r"the saved cell has the shape \[6, 2\], this environment has \[6, 4\]"):
        make().load_state_dict(make("tiny-2ag").state_dict())
    with pytest.raises(ValueError, match=r"the saved shelves has the shape"):
        make("small-4ag").load_state_dict(make().state_dict())


def test_a_step_is_one_graph():
    env = make("tiny-4ag", reward_type="two_stage")
    env.reset_tensors()

    def both(floor, action, draws):
        floor, reward = advance(env.rules, env.tables, floor, action, draws)
        return floor, reward, observe(env.rules, env.tables, floor)

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True, dynamic=False)
    floor = env.floor
    for t in range(3):
        action = actions(env, t)[ACTION]
        draws = draw_requests(env.rules, env.tables, 6, env.generator)
        expected, found = both(floor, action, draws), compiled(floor, action, draws)
        assert same(expected[0], found[0]) and same(expected[1:], found[1:])
        floor = found[0]


class NoSync(TorchDispatchMode):
    """Refuses what would make the host wait for a device, or give shapes that depend on data."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "item", "nonzero", "masked_select", "equal"), name
        assert not (name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1])), name
        return func(*args, **(kwargs or {}))


def test_no_host_synchronisation():
    env = make(max_inactivity=5)
    env.cheap_reset = True  # as on a GPU
    action, mask = actions(env), torch.arange(6) < 3
    with NoSync():
        env.step_tensors(action)
        env.reset_tensors(mask)


def test_the_exact_rule_needs_a_cpu():
    if torch.cuda.is_available():
        with pytest.raises(ValueError, match="works on the device 'cpu' only, got 'cuda'"):
            make(conflicts="exact", device="cuda")


@pytest.mark.gpu
def test_on_a_gpu():
    """The same floors, step by step, as on the CPU."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    env = make("small-4ag", num_envs=64)
    env.reset_tensors()
    tables, floor = make_tables(env.rules, "cuda"), Floor(*(x.cuda() for x in env.floor))
    for t in range(100):
        action, draws = actions(env, t)[ACTION], env._draw()
        env.floor, _ = advance(env.rules, env.tables, env.floor, action, draws)
        floor, _ = advance(env.rules, tables, floor, action.cuda(), draws.cuda())
    assert same(env.floor, [x.cpu() for x in floor])
    assert torch.equal(observe(env.rules, tables, floor).cpu(), env._observe()[OBSERVATION])
    other = make("small-4ag", num_envs=64, device="cuda")
    other.reset_tensors(torch.arange(64, device="cuda") < 3)
    assert other.step_tensors({ACTION: action.cuda()})[OBSERVATION].device.type == "cuda"


# ---------------------------------------------------------------------- pictures

def test_pictures():
    env = make("small-4ag", num_envs=2, seed=3)
    env.reset_tensors()
    before = env.render_frame(1)
    assert before.dtype == np.uint8 and before.shape == (512, 262, 3)
    assert len(np.unique(before.reshape(-1, 3), axis=0)) > 9
    assert np.array_equal(before, env.render_frame(1)) and not np.array_equal(before, env.render_frame(0))
    assert env.render_frame(0, (120, 200)).shape == (120, 200, 3)
    carried, below = env.floor.load.clone(), env.floor.shelves.clone()
    carried[1, 0], below[1, below[1] == 5] = 5, 0
    env.floor = env.floor._replace(load=carried, shelves=below)
    assert not np.array_equal(before, env.render_frame(1))
    with pytest.raises(ValueError, match=r"env_index must be in \[0, 1\], got 2"):
        env.render_frame(2)
