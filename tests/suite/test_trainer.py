import math

import pytest
import torch

from suite.data import Replay
from suite.specs import DONE, OBSERVATION, REWARD, TERMINATED
from tests.fakes import A, Batches, DiskRun, N, Square, T, Whole, copies, frozen_terms, make, unchanged, update


def test_reward_is_the_weighted_sum_of_the_terms():
    trainer = make([], weights={"task": 2.0, "bonus": -0.5}, losses=[frozen_terms(bonus=3.0)])
    batch = trainer.collector.batch()
    metrics = trainer.prepare(batch)
    assert torch.equal(batch["next", *REWARD], torch.full((N, T, A, 1), 2.0 * 1.0 - 0.5 * 3.0))
    assert metrics["reward/task"] == 1 and metrics["reward/bonus"] == 3


def test_a_term_without_weight_is_logged_but_not_paid():
    trainer = make([], losses=[frozen_terms(bonus=3.0)])
    batch = trainer.collector.batch()
    assert trainer.prepare(batch)["reward/bonus"] == 3
    assert batch["next", *REWARD].eq(1).all()


def test_duplicate_terms_and_unknown_weights_are_refused():
    trainer = make([], losses=[frozen_terms(bonus=1.0), frozen_terms(bonus=2.0)])
    with pytest.raises(ValueError, match=r"reward terms \['bonus'\] are given twice, the second time by Square"):
        trainer.prepare(trainer.collector.batch())
    trainer = make([], losses=[frozen_terms(task=1.0)])
    with pytest.raises(ValueError, match=r"\['task'\] are given twice"):
        trainer.prepare(trainer.collector.batch())
    trainer = make([], weights={"task": 1.0, "style": 1.0}, losses=[frozen_terms(bonus=1.0)])
    with pytest.raises(ValueError, match=r"reward_weights names \['style'\], but the terms are \['bonus', 'task'\]"):
        trainer.prepare(trainer.collector.batch())


def test_team_reward_is_the_sum_over_agents_for_everyone():
    collector = Batches(reward=torch.tensor([1.0, 10.0]).unsqueeze(-1))
    trainer = make([], collector=collector, team_reward=True, weights={"task": 0.5})
    batch = collector.batch()
    trainer.receive(batch)
    metrics = trainer.prepare(batch)
    assert batch["next", *REWARD].eq(5.5).all()
    assert metrics["episode/return"].item() == pytest.approx(N * T * 11)  # of the team, without weight


def test_episode_statistics_are_of_the_environments_reward():
    trainer = make([], weights={"task": 100.0})
    metrics = trainer.prepare(trainer.collector.batch())
    assert metrics["episode/return"] == N * T and metrics["episode/count"] == N


def test_dones_are_expanded_to_agents():
    batch = Batches().batch()
    make([]).receive(batch)
    for key, source in ((DONE, "done"), (TERMINATED, "terminated")):
        assert batch["next", *key].shape == (N, T, A, 1) and batch["next", *key].dtype == torch.bool
        for agent in range(A):
            assert torch.equal(batch["next", *key][:, :, agent], batch["next", source])


# ---------------------------------------------------------------------- the loop


def test_order_of_an_iteration():
    events = []

    class Recorder(Square):
        def reward_terms(self, batch):
            events.append("terms")
            return {}

        def forward(self, minibatch):
            events.append("forward")
            return super().forward(minibatch)

        def refresh(self, batch):
            events.append("refresh loss")

    class Collector(Batches):
        def update_policy_weights_(self):
            events.append("weights")

    class Extended(Whole):
        def extend(self, batch):
            assert batch["next", *REWARD].shape == (N, T, A, 1)
            events.append("data")

    loss = Recorder()
    source = Extended()
    trainer = make([update(loss=loss, data=source), update("again", every=10**9, data=source)], collector=Collector(),
                   losses=[loss], refresh=[lambda batch: events.append("refresh")],
                   schedules=[lambda progress: events.append(f"schedule {progress}")],
                   estimators=[lambda batch: events.append("advantage")])
    trainer.iteration = 1
    trainer.collector.frames = N * T  # the fake one counts while it iterates
    trainer.iterate(trainer.collector.batch())
    assert events == ["schedule 0.0", "terms", "advantage", "data", "forward", "refresh", "refresh loss", "weights"]


def test_schedules_hear_the_share_of_frames_before_the_iteration():
    heard = []
    make([update()], collector=Batches(4), schedules=[heard.append, lambda share: heard.append(-share)]).train()
    assert heard == pytest.approx([0.0, 0.0, 0.25, -0.25, 0.5, -0.5, 0.75, -0.75])


def replay_of(**options):
    return Replay(**dict(capacity=100, steps=1, size=4, warmup=4, keys=[OBSERVATION], device="cpu") | options)


def test_every_source_is_filled_and_saved_once():
    """Two updates on one replay and its view, and a loss with a replay of its own."""
    def fresh():
        shared, own, lone = replay_of(), replay_of(capacity=20), replay_of(steps=2)
        data = {"a": shared, "b": shared, "view": shared.with_epochs(3), "own": own, "lone": lone.with_epochs(2)}
        made = make([update(name, data=source) for name, source in data.items()])
        assert made.sources == [shared, own, lone]  # a view's buffer is filled even if no update draws from it itself
        return made

    trainer = fresh()
    batch = trainer.collector.batch()
    trainer.iterate(batch)
    trainer.iterate(batch)
    assert [len(source.buffer) for source in trainer.sources] == [2 * N * T, 20, 2 * N * T]
    metrics = trainer.iterate(batch)
    assert all(f"{name}/loss_square" in metrics for name in ("a", "b", "view", "own", "lone"))
    saved, other = trainer.state_dict(), fresh()
    assert len(saved["sources"]) == 3
    other.load_state_dict(saved)
    for mine, theirs in zip(other.sources, trainer.sources, strict=True):
        assert len(mine.buffer) == len(theirs.buffer) and mine.buffer.writer._cursor == theirs.buffer.writer._cursor
        assert torch.equal(mine.buffer.storage[:][OBSERVATION], theirs.buffer.storage[:][OBSERVATION])


def test_a_key_that_a_replay_cannot_store_is_named_with_who_reads_it():
    loss = Square()
    loss.in_keys.append("extra")
    trainer = make([update("fine", data=replay_of()), update("lacking", loss, data=replay_of(keys=loss.in_keys))])
    with pytest.raises(ValueError, match=r"update 'lacking', part 'lacking': Square reads \['extra'\], which"):
        trainer.iterate(trainer.collector.batch())


def test_two_updates_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"several updates are named \['twin'\]: their metrics and checkpoints would"):
        make([update("twin"), update("single"), update("twin")])


def test_names_of_the_metrics():
    trainer = make([update("mine")], evaluate=lambda frames: {"return": 5.0}, evaluate_every=1)
    trainer.train()
    rows = trainer.run.rows
    assert rows[0] == {"frames": 0, "eval/return": 5.0}
    assert set(rows[1]) == {"frames", "reward/task", "episode/return", "episode/length",
                            "mine/loss_square", "mine/size",
                            "time/collect", "time/update", "time/update_mine", "time/total", "time/frames_per_second"}
    assert 0 < rows[1]["time/update_mine"] < rows[1]["time/update"]
    assert rows[1]["episode/return"] == T and rows[1]["episode/length"] == T
    assert [row["frames"] for row in rows if "eval/return" in row] == [0, N * T, 2 * N * T, 3 * N * T]


def test_without_an_ended_episode_no_episode_metrics():
    class Endless(Batches):
        def batch(self):
            td = super().batch()
            td["next", "done"].zero_()
            return td

    trainer = make([update()], collector=Endless())
    trainer.train()
    assert all(not key.startswith("episode/") for row in trainer.run.rows for key in row)


def test_evaluations_and_checkpoints_are_due_at_their_intervals_and_at_the_end(tmp_path):
    run = DiskRun(tmp_path)
    trainer = make([update()], collector=Batches(7), run=run, evaluate=lambda frames: {"x": 1.0}, evaluate_every=3,
                   checkpoint_every=2)
    trainer.train()
    assert [row["frames"] // (N * T) for row in run.rows if "eval/x" in row] == [0, 3, 6, 7]
    assert run.checkpoints.whole() == [0, 2, 4, 6, 7]


def test_an_evaluation_is_told_how_many_frames_there_were():
    trainer = make([update()], evaluate=lambda frames: {"told": float(frames)}, evaluate_every=1)
    trainer.train()
    told = {row["frames"]: row["eval/told"] for row in trainer.run.rows if "eval/told" in row}
    assert told == {k * N * T: k * N * T for k in range(4)}


@pytest.mark.parametrize("when", [0, 2])
def test_a_stop_request_leaves_a_checkpoint_of_a_finished_iteration(tmp_path, when):
    class Stopping(DiskRun):
        asked = 0

        @property
        def stop_requested(self):
            self.asked += 1
            return self.asked > when

    run = Stopping(tmp_path)
    trainer = make([update()], collector=Batches(9), run=run)
    trainer.train()
    assert run.checkpoints.whole() == sorted({0, when}) and trainer.iteration == when
    assert run.checkpoints.load()["collector"]["frames"] == when * N * T
    assert run.asked == when + 1  # one question per iteration: between two, a stop could go without its checkpoint


def nan_at(iteration):
    return lambda k: math.nan if k == iteration else 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_reward_stops_the_run_and_leaves_the_last_checkpoint(tmp_path, value):
    run = DiskRun(tmp_path)
    collector = Batches(9, reward=lambda k: value if k == 5 else 1.0)
    trainer = make([update()], collector=collector, run=run, checkpoint_every=2)
    with pytest.raises(FloatingPointError, match=rf"non-finite reward at frame {5 * N * T}: .*reward/task"):
        trainer.train()
    assert run.checkpoints.whole() == [0, 2, 4] and len(run.rows) == 5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_stops_the_run_names_it_and_leaves_the_last_checkpoint(tmp_path, value):
    loss = Square(name="bad")
    run = DiskRun(tmp_path)

    def spoil(batch):
        if trainer.iteration == 3:
            loss.factor = value

    trainer = make([update("fine"), update("sick", loss)], collector=Batches(9), run=run, checkpoint_every=2,
                   refresh=[spoil])
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    assert f"update 'sick' met a non-finite value at frame {5 * N * T}" in str(caught.value)
    assert "sick/loss_bad" in str(caught.value) and "fine" not in str(caught.value)
    assert run.checkpoints.whole() == [0, 2, 4]
    assert all(torch.isfinite(p).all() for p in run.checkpoints.load()["updates"]["sick"]["losses"][0].values())


class Cusp(Square):
    """The square, and once ``broken`` something whose value is 0 and whose slope infinite times 0."""

    broken = False

    def forward(self, minibatch):
        out = super().forward(minibatch)
        return out.update({"loss_cusp": (self.net.weight * 0).sum().sqrt()}) if self.broken else out


@pytest.mark.parametrize("clipping, words", [
    (1.0, r"update 'sick' met a non-finite value at frame {frames}: .*'sick/loss_cusp': 0\.0.*'sick/grad_norm': nan"),
    (None, r"non-finite parameters at frame {frames} in part 'sick' of update 'sick', after finite losses: "
           r"{{'sick/loss_square': .*'sick/loss_cusp': 0\.0.*}}; a part with max_grad_norm")])
def test_a_non_finite_gradient_of_a_finite_loss_reaches_no_checkpoint(tmp_path, clipping, words):
    loss, run = Cusp(), DiskRun(tmp_path)

    def spoil(batch):
        loss.broken = trainer.iteration == 3

    trainer = make([update("fine"), update("sick", loss, max_grad_norm=clipping)], collector=Batches(5), run=run,
                   checkpoint_every=1, refresh=[spoil])
    with pytest.raises(FloatingPointError, match=words.format(frames=5 * N * T)):
        trainer.train()
    assert all(p.isnan().any() for p in loss.net.parameters() if p.ndim > 1), "the case is the one meant"
    assert run.checkpoints.whole() == [0, 1, 2, 3, 4]
    assert all(torch.isfinite(p).all() for p in run.checkpoints.load()["updates"]["sick"]["losses"][0].values())


def test_all_that_is_trained_is_looked_at_and_costs_no_synchronisation_of_its_own():
    """In one number beside the metrics, whichever updates were due; what no optimiser owns may be infinite."""
    losses = [Square(), Square(), frozen_terms()]
    with torch.no_grad():
        losses[2].net.bias.fill_(math.inf)
    trainer = make([update("often", losses[0]), update("rare", losses[1], every=10**9), update("never", losses[2])])
    metrics = trainer.iterate(trainer.collector.batch())
    assert all(math.isfinite(value) for value in trainer._to_host(metrics).values())
    for name, loss in (("often", losses[0]), ("rare", losses[1])):
        kept = copies(loss)
        with torch.no_grad():
            loss.net.bias.fill_(math.nan)
        row = trainer._to_host(metrics)
        with pytest.raises(FloatingPointError, match=f"in part '{name}' of update '{name}', after finite"):
            trainer._check_finite(row, row.pop("parameters/norm"))
        with torch.no_grad():
            loss.net.bias.copy_(kept[1])


def timeless(rows):
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def test_a_trainer_restored_continues_to_the_last_bit(tmp_path):
    def fresh(name, count):
        torch.manual_seed(4)
        adam = update(optimizer=lambda params: torch.optim.Adam(params, lr=0.01))
        return make([adam], collector=Batches(count), run=DiskRun(tmp_path / name))

    whole_run, first = fresh("whole", 6), fresh("first", 4)
    whole_run.train()
    first.train()
    rest = fresh("rest", 6)
    rest.load_state_dict(first.run.checkpoints.load())
    rest.train()
    assert timeless(first.run.rows + rest.run.rows) == timeless(whole_run.run.rows)
    assert unchanged(whole_run.updates[0].losses[0], copies(rest.updates[0].losses[0]))
    assert rest.run.checkpoints.whole() == [6]  # no second evaluation or checkpoint of the beginning
    assert rest.seconds > first.seconds > 0


def test_prepare_is_without_gradients():
    loss = Square()
    loss.reward_terms = lambda batch: {"bonus": loss.net(batch[OBSERVATION])}
    trainer = make([update(loss=loss)], losses=[loss], weights={"task": 1.0, "bonus": 1.0})
    batch = trainer.collector.batch()
    trainer.prepare(batch)
    assert not batch["next", *REWARD].requires_grad
