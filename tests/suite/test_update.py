from copy import deepcopy

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from suite.data import Minibatches, Sequences
from suite.specs import OBSERVATION
from suite.update import Update
from tests.fakes import Batches, Given, N, Square, T, copies, make, sgd, unchanged, update, whole


def test_an_update_moves_only_its_own_parameters():
    first, second = Square(), Square()
    trainer = make([update("a", first), update("b", second, every=10**9)])
    trainer.iteration = 1  # b is not due
    before = copies(first), copies(second)
    trainer.iterate(trainer.collector.batch())
    assert not unchanged(first, before[0]) and unchanged(second, before[1])
    assert all(p.grad is None for p in second.parameters())


def test_each_part_has_its_own_optimiser_and_clipping():
    """Two parts in one update: the gradient of one does not shrink the other's step."""
    torch.manual_seed(1)
    small, large = Square(name="small", factor=1e-6), Square(name="large", factor=1e6)
    both = Update("u", {"small": small, "large": large}, whole, optimizer=sgd, max_grad_norm=1.0)
    minibatch = Batches().batch().select(OBSERVATION)
    before = copies(small), copies(large)
    out = both.step(minibatch)
    grad = [p.grad for p in small.parameters()]
    assert out["grad_norm_large"] > 1e3 and out["grad_norm_small"] < 1e-3  # norms before clipping
    step = torch.cat([(p - b).flatten() for p, b in zip(large.parameters(), before[1], strict=True)])
    assert step.norm().item() == pytest.approx(0.1, rel=1e-4)  # lr * max_grad_norm
    for param, b, g in zip(small.parameters(), before[0], grad, strict=True):
        assert torch.allclose(param, b - 0.1 * g, rtol=0, atol=1e-12)


def test_metrics_are_means_over_minibatches_under_the_updates_name():
    def halves(batch, keys):
        yield from batch.select(*keys).reshape(-1).split(N * T // 2)

    loss = Square()
    frozen = {"optimizer": lambda params: torch.optim.SGD(params, lr=0.0), "data": Given(halves)}
    found = update("name", loss, **frozen).run(Batches().batch())
    assert set(found) == {"name/loss_square", "name/size"}
    assert all(isinstance(value, Tensor) and value.ndim == 0 and not value.requires_grad for value in found.values())
    expected = [loss(half)["loss_square"] for half in halves(Batches().batch(), [OBSERVATION])]
    assert found["name/loss_square"].item() == pytest.approx(sum(expected).item() / 2)


def test_a_metric_of_the_first_step_is_no_mean():
    class Largest(Square):
        def forward(self, minibatch):
            largest = minibatch[OBSERVATION].max()
            return super().forward(minibatch).update({"first_step_largest": largest, "largest": largest})

    def rising(batch, keys):
        for k in (2.0, 3.0, 7.0):
            yield batch.select(*keys).apply(lambda x: torch.full_like(x, k))  # noqa: B023, called at once

    found = update("name", Largest(), data=Given(rising)).run(Batches().batch())
    assert found["name/first_step_largest"] == 2 and found["name/largest"] == 4


def test_only_entries_named_loss_are_minimised():
    class Tempting(Square):
        def forward(self, minibatch):
            return super().forward(minibatch).update({"bonus": 1e6 * self.net.weight.sum()})

    torch.manual_seed(2)
    plain, tempted = Square(), Tempting()
    tempted.load_state_dict(plain.state_dict())
    for loss in (plain, tempted):
        update(loss=loss).run(Batches().batch())
    assert torch.equal(plain.net.weight, tempted.net.weight)


def test_losses_with_equal_metric_names_are_all_minimised_and_logged():
    """The second of a name gets its part as suffix; the other entries are logged apart too."""
    torch.manual_seed(3)
    first, second = Square(name="x"), Square(name="x", factor=5.0)
    both = Update("u", {"a": first, "b": second}, whole, optimizer=sgd, max_grad_norm=None)
    minibatch = Batches().batch().select(OBSERVATION)
    expected = [loss(minibatch) for loss in (first, second)]
    before = copies(first), copies(second)
    found = both.step(minibatch)
    assert set(found) == {"loss_x", "size", "loss_x_b", "size_b"}
    for suffix, values in zip(("", "_b"), expected, strict=True):
        assert found[f"loss_x{suffix}"] == values["loss_x"] and found[f"size{suffix}"] == values["size"]
    alone = [Square(name="x"), Square(name="x", factor=5.0)]
    for loss, values, trained in zip(alone, before, (first, second), strict=True):
        with torch.no_grad():
            for param, value in zip(loss.parameters(), values, strict=True):
                param.copy_(value)
        update(loss=loss).step(minibatch)
        assert unchanged(trained, copies(loss)) and not unchanged(trained, values)


def test_a_third_metric_of_one_name_is_no_silent_loss():
    three = Update("u", {"a": [Square(), Square(), Square()]}, whole, optimizer=sgd, max_grad_norm=None)
    with pytest.raises(ValueError, match=r"update 'u' has two metrics 'loss_square_a'.*Square"):
        three.step(Batches().batch())


class Wrong(Square):
    """A loss that returns what it is told to, of its own entries."""

    def __init__(self, change, keys=()):
        super().__init__()
        self.change, self.in_keys = change, [*self.in_keys, *keys]

    def forward(self, minibatch):
        return TensorDict(self.change(dict(super().forward(minibatch).items()), minibatch))


WRONG = {
    "no entry": (lambda out, _: {"los_square": out["loss_square"]}, r"update 'u' has nothing to minimise: "
                 r"{\"Wrong in part 'p'\": \['los_square'\]}; some entry of these must be named loss_\*"),
    "none at all": (lambda out, _: {}, r"update 'u' has nothing to minimise: {\"Wrong in part 'p'\": \[\]}"),
    "no gradient": (lambda out, _: {"loss_square": out["loss_square"].detach()},
                    r"nothing to minimise: {\"Wrong in part 'p'\": \['loss_square'\]}; .* depend on a parameter"),
    "no scalar": (lambda out, _: {"loss_square": out["loss_square"].expand(3, 2), "size": out["size"]},
                  r"update 'u': Wrong in part 'p' returns {'loss_square': \(3, 2\)}, but entries named loss_\* have "
                  r"the shape \(\)"),
    "one number, not scalar": (lambda out, _: {"loss_square": out["loss_square"].view(1)},
                               r"Wrong in part 'p' returns {'loss_square': \(1,\)}"),
    "a key it does not name": (lambda out, minibatch: out | {"size": minibatch["extra"].mean()},
                               r"update 'u': Wrong in part 'p' met a KeyError, .*extra.*; of a minibatch it may read "
                               r"what it names as in_keys: \[\('agents', 'observation'\)\]"),
}


@pytest.mark.parametrize("compiled", [None, {"backend": "eager"}], ids=["eager", "compiled"])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_loss_is_named_with_what_it_returned_and_what_is_allowed(case, compiled):
    change, words = WRONG[case]
    wrong = Update("u", {"p": Wrong(change)}, whole, optimizer=sgd, max_grad_norm=None, compile=compiled)
    before = copies(wrong.losses[0])
    with pytest.raises(ValueError, match=words):
        wrong.run(Batches().batch())
    assert unchanged(wrong.losses[0], before)


@pytest.mark.parametrize("case", ["no scalar", "a key it does not name"])
def test_the_wrong_one_of_several_losses_is_named(case):
    change, _ = WRONG[case]
    parts = Update("u", {"a": Square(name="a"), "b": Wrong(change)}, whole, optimizer=sgd, max_grad_norm=None)
    with pytest.raises(ValueError, match="update 'u': Wrong in part 'b'"):
        parts.run(Batches().batch())


def test_a_loss_that_only_measures_is_allowed_beside_one_that_is_minimised():
    measure = Wrong(lambda out, _: {"measured": out["size"]})
    both = Update("u", {"p": [Square(), measure.requires_grad_(False)]}, whole, optimizer=sgd, max_grad_norm=None)
    assert {"u/loss_square", "u/measured"} <= set(both.run(Batches().batch()))


@pytest.mark.parametrize("data", [Minibatches(1, 2), Sequences(1), whole], ids=lambda x: type(x).__name__)
def test_a_key_that_the_batch_lacks_is_named_with_who_reads_it(data):
    lacking = Wrong(lambda out, _: out, keys=["extra", ("next", "more")])
    parts = Update("u", {"a": Square(), "b": lacking}, data, optimizer=sgd, max_grad_norm=None)
    with pytest.raises(ValueError, match=r"update 'u', part 'b': Wrong reads \['extra', \('next', 'more'\)\], which "
                                         r"the batch lacks; it has .*\('agents', 'observation'\)"):
        parts.run(Batches().batch())


def test_a_key_error_of_another_kind_is_left_as_it_is():
    def broken(batch, keys):
        yield {}["something else"]

    with pytest.raises(KeyError, match="something else"):
        update(data=Given(broken)).run(Batches().batch())


def test_a_loss_may_name_a_part_for_each_of_its_networks():
    """Each network has an optimiser, a clipping and a gradient norm of its own."""
    class Two(Square):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(3, 1)

        def networks(self, part):
            return {"left": list(self.net.parameters()), f"{part}_right": list(self.other.parameters())}

        def forward(self, minibatch):
            other = 1e6 * self.other(minibatch[OBSERVATION]).square().mean()
            return super().forward(minibatch).update({"loss_other": other})

    torch.manual_seed(4)
    loss = Two()
    both = Update("u", {"x": loss}, whole, max_grad_norm=1.0,
                  optimizer={"left": sgd, "x_right": lambda params: torch.optim.SGD(params, lr=0.5)})
    assert {part: list(map(id, params)) for part, params in both.params.items()} == {
        "left": list(map(id, loss.net.parameters())), "x_right": list(map(id, loss.other.parameters()))}
    before = copies(loss.other)
    out = both.step(Batches().batch())
    assert {"grad_norm_left", "grad_norm_x_right"} <= set(out) and out["grad_norm_x_right"] > 1e3
    assert out["grad_norm_left"] < 1e3
    step = torch.cat([(p - b).flatten() for p, b in zip(loss.other.parameters(), before, strict=True)])
    assert step.norm().item() == pytest.approx(0.5, rel=1e-4)  # lr * max_grad_norm


def test_a_minibatch_holds_what_the_losses_read_and_nothing_else():
    seen = []

    def spy(batch, keys):
        seen.extend(keys)
        yield batch.select(*keys)

    both = Update("u", {"a": [Square(), Square(name="b")]}, Given(spy), optimizer=sgd, max_grad_norm=None)
    both.run(Batches().batch())
    assert seen == [OBSERVATION]


def test_targets_step_after_every_optimiser_step():
    class Target:
        count = 0

        def step(self):
            self.count += 1

    def three(batch, keys):
        yield from [batch.select(*keys)] * 3

    target = Target()
    update(data=Given(three), targets=[target]).run(Batches().batch())
    assert target.count == 3


def test_no_minibatches_no_metrics_and_no_parameters_no_optimiser():
    assert update(data=Given(lambda batch, keys: iter(()))).run(Batches().batch()) == {}
    frozen = Square()
    frozen.requires_grad_(False)
    assert update(loss=frozen).optimizers == {} and update(loss=frozen).run(Batches().batch()) == {}


def test_every():
    trainer = make([update("often"), update("rarely", every=3)], collector=Batches(7))
    trainer.train()
    assert [i for i, row in enumerate(trainer.run.rows) if "rarely/loss_square" in row] == [0, 3, 6]
    assert all("often/loss_square" in row for row in trainer.run.rows)


def test_an_update_restored_continues_alike():
    def adam(params):
        return torch.optim.Adam(params, lr=0.1)

    batch = Batches().batch()
    one = update(optimizer=adam)
    one.run(batch)
    other = update(optimizer=adam)
    other.load_state_dict(deepcopy(one.state_dict()))
    assert one.run(batch) == other.run(batch)
    assert unchanged(one.losses[0], copies(other.losses[0]))


# ---------------------------------------------------------------------- ownership


def test_two_optimisers_for_one_parameter_are_refused():
    net = nn.Linear(3, 1)
    with pytest.raises(ValueError, match=r"'a/a' and 'b/b' train a parameter of shape \(1, 3\) with two optimizers"):
        make([update("a", Square(net=net)), update("b", Square(net=net))])
    parts = Update("u", {"x": Square(net=net), "y": Square(net=net)}, whole, optimizer=sgd, max_grad_norm=None)
    with pytest.raises(ValueError, match="'u/x' and 'u/y'"):
        make([parts])


def test_one_optimiser_for_two_losses_is_fine():
    net = nn.Linear(3, 1)
    part = [Square(net=net), Square(net=net, name="other")]
    make([Update("u", {"x": part}, whole, optimizer=sgd, max_grad_norm=None)])


@pytest.mark.parametrize("where", ["policy", "losses"])
def test_a_trainable_parameter_without_optimiser_is_refused(where):
    loss = Square()
    given = {"policy": loss} if where == "policy" else {"losses": [loss]}
    with pytest.raises(ValueError, match=r"no update trains parameter 'net.weight' of shape \(1, 3\) in Square"):
        make([update()], **given)
    make([update(loss=loss)], **given)
    loss.requires_grad_(False)
    make([update()], **given)


def test_a_parameter_beside_the_losses_own_part_is_found():
    """A loss in an update whose optimiser got fewer parameters than the loss has."""
    lazy = update()
    lazy.losses[0].register_parameter("late", nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match="no update trains parameter 'late'"):
        make([lazy])


class Trace(Square):
    """Notes the weight of another loss when it computes its own."""

    def __init__(self, other=None, **options):
        super().__init__(**options)
        self.__dict__["other"], self.seen = other, []

    def forward(self, minibatch):
        self.seen.append(None if self.other is None else self.other.net.weight.detach().clone())
        return super().forward(minibatch)


class Counter:
    def __init__(self):
        self.count = 0

    def step(self):
        self.count += 1


def test_parts_that_take_turns_see_what_the_ones_before_have_changed():
    """The second part computes after the first has stepped, at every second minibatch, and its targets follow it."""
    first = Square(name="a")
    second, every, rare = Trace(first, name="b"), Counter(), Counter()
    turns = Update("u", {"first": first, "second": second}, whole, optimizer=sgd, max_grad_norm=None,
                   delay={"second": 2}, targets={"first": [every], "second": [rare]})
    minibatch = Batches().batch().select(OBSERVATION)
    before = copies(second)
    out = turns.step(minibatch)
    assert "loss_b" not in out and not second.seen and unchanged(second, before)
    assert (every.count, rare.count) == (1, 0)
    out = turns.step(minibatch)
    assert set(out) == {"loss_a", "size", "loss_b", "size_second"} and not unchanged(second, before)
    assert (every.count, rare.count) == (2, 1)
    assert torch.equal(second.seen[0], first.net.weight), "after the first part's second step"


def test_the_turn_is_saved():
    def make_one():
        torch.manual_seed(4)
        return Update("u", {"a": Square(name="a"), "b": Square(name="b")}, whole, optimizer=sgd, max_grad_norm=None,
                      delay={"b": 3})

    one, two = make_one(), make_one()
    minibatch = Batches().batch().select(OBSERVATION)
    one.step(minibatch)
    two.load_state_dict(one.state_dict())
    for _ in range(2):
        assert set(one.step(minibatch)) == set(two.step(minibatch))
    assert all(unchanged(x, copies(y)) for x, y in zip(one.losses, two.losses, strict=True))


@pytest.mark.parametrize("options, words", [
    ({"delay": {"c": 2}}, "delay names the parts \\['c'\\], but the parts are \\['a', 'b'\\]"),
    ({"delay": {}, "targets": {"c": []}}, "targets names the parts \\['c'\\]"),
    ({"delay": {"a": 0}}, "delays must be at least 1, got {'a': 0}"),
    ({"targets": {"a": [Counter()]}}, "if the parts take turns .* got dict with delay None"),
    ({"targets": [Counter()], "delay": {}}, "got list with delay {}"),
])
def test_wrong_turns_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Update("u", {"a": Square(name="a"), "b": Square(name="b")}, whole, optimizer=sgd, max_grad_norm=None, **options)
