"""Proves, or fails to prove, what loss ``moa`` claims: experiments without RL, and the runs of a table.

    python -m recipes.moa_proofs --seeds 3
    python -m recipes.moa_proofs --only world toy

What was measured is kept in numbers.json after every seed; the table and the figure are made from all of it, so that a
part of the experiments may be repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import tyro

from recipes.moa_latents import leader, toy
from recipes.moa_obligations import OBLIGATIONS
from recipes.moa_predictions import partners, world
from recipes.moa_runs import Numbers, learning, returns, use
from recipes.tables import TABLES
from suite.config import check_choice, check_positive, run_cli
from suite.proof_figures import draw_proofs
from suite.proofs import judge, markdown, read_numbers, write_numbers
from suite.run import commit

COMMAND = "python -m recipes.moa_proofs --only {experiment}"
REMARKS = ("Experiments partners, world, toy and leader train the models of the loss on frozen policies, by the "
           "recipe's trainer without an actor's update, and measure them on fresh episodes.",
           "Experiments learning, use and returns read the runs of a table, returns_partners those of moa_partners "
           "(a leader that is a script), returns_raw those of moa_raw (observations as they are).",
           "Rows 'by feature' are additions to the specification's list: the mean over features of 1 - mse / mse_copy.",
           "uc is what a student without memory reads; 'KL reversed' is kl_direction teacher_to_student. Rows 'by an "
           "MLP', which read z like its inputs, are additions.",
           "'Plain x' is an addition too: row MOA-plain-x, without the world model's residual in the features. Returns "
           "are compared on the tasks with hidden variables, and on dense ones, as far as they have runs.",
           "'Follows learning partners' is a share of the tasks that have runs, where the specification asks for three "
           "of five core tasks; 'World model predicts' has six of the 18 scenarios that it could.",
           "'skill' on vmas/navigation, where partners are mostly out of sight, stands in numbers.json for comparison.")


def latents(experiment: Callable[..., dict[str, float]], seed: int, latent_dim: int) -> dict[str, float]:
    """What is claimed of student and teacher, from both directions of the KL."""
    there, back = experiment(seed), experiment(seed, direction="teacher_to_student")
    return claims(there, latent_dim) | {"calibration, KL reversed": back["calibration"],
                                        "kl / d_z, KL reversed": back["kl"] / latent_dim}


def claims(found: dict[str, float], latent_dim: int) -> dict[str, float]:
    """Differences of the probes' accuracies, and the KL by dimension."""
    out = {"probe/uc_mlp - probe/z": found["uc_mlp"] - found["z"],
           "probe/uc_mlp - probe/z_mlp": found["uc_mlp"] - found["z_mlp"],
           "probe/z_teacher - probe/z": found["z_teacher"] - found["z"],
           "kl / d_z": found["kl"] / latent_dim}
    if "bayes" in found:
        out |= {"Bayes filter - probe/z": found["bayes"] - found["z"], "probe/z at t >= 10": found["z_late"]}
    return out | {f"probe/{name}": found[name] for name in ("u", "uc", "uc_mlp", "z", "z_mlp", "z_teacher")}


# by name: seed -> {figure: value}
EXPERIMENTS: dict[str, Callable[[int], dict[str, float]]] = {
    "partners": partners, "world": world, "toy": lambda seed: latents(toy, seed, 8),
    "toy_gru": lambda seed: claims(toy(seed, memory=True), 8), "leader": lambda seed: latents(leader, seed, 16)}
TABLES_READ = {"returns_partners": "moa_partners", "returns_raw": "moa_raw"}  # beside the one that is given
FROM_RUNS = ("learning", "use", "returns", *TABLES_READ)


def prove(*, seeds: int = 3, only: tuple[str, ...] = (), table: str = "moa", runs: str = "runs/benchmark",
          tables: str = "results", results: str = "results/moa_proofs") -> None:
    """Run the experiments and write what they prove.

    Args:
        seeds: seeds 1 to this number.
        only: these experiments: partners, world, toy, toy_gru, leader; learning, use, returns, returns_partners,
            returns_raw.
        table: whose runs are read: moa or moa_small.
        runs: folder of the run folders.
        tables: folder of the results of tables.
        results: folder to write to.
    """
    check_positive({"seeds": seeds})
    check_choice("table", table, [name for name, it in TABLES.items() if "MOA" in it.rows])
    for name in only:
        check_choice("experiment", name, [*EXPERIMENTS, *FROM_RUNS])
    torch.set_num_threads(1)
    folder = Path(results)
    numbers = read_numbers(folder / "numbers.json")
    for name in only or (*EXPERIMENTS, *FROM_RUNS):
        if name in EXPERIMENTS:
            for seed in range(1, seeds + 1):
                for figure, value in EXPERIMENTS[name](seed).items():
                    numbers.setdefault(name, {}).setdefault(figure, {})[str(seed)] = value
                numbers.setdefault("commits", {}).setdefault(name, {})[str(seed)] = commit()
                write_numbers(folder / "numbers.json", numbers)
                print(f"{name}: seed {seed}", flush=True)
            continue
        found = {"learning": lambda: learning(table, runs, seeds), "use": lambda: use(table, runs, seeds),
                 "returns": lambda: returns(table, tables),
                 **{key: partial(returns, other, tables) for key, other in TABLES_READ.items()}}[name]()
        complete = name.startswith("returns")  # the tables hold all of these
        numbers[name] = updated(numbers.get(name, {}), found, fresh=complete)
        print(f"{name}: {len(numbers[name])} figures", flush=True)
    write_numbers(folder / "numbers.json", numbers)
    publish(folder)


def updated(before: Numbers, found: Numbers, *, fresh: bool) -> Numbers:
    """What was measured before, of runs whose folders may be gone, with what was found; ``fresh``: that alone, if any.
    """
    found = {figure: values for figure, values in found.items() if values}
    if fresh and found:
        return found
    return before | {figure: before.get(figure, {}) | values for figure, values in found.items()}


def publish(folder: Path) -> None:
    """README.md and proofs.png from numbers.json."""
    numbers = read_numbers(folder / "numbers.json")
    findings = [judge(obligation, numbers) for obligation in OBLIGATIONS]
    made = "; ".join(f"{name} {', '.join(sorted(set(seeds.values())))}"
                     for name, seeds in sorted(numbers.get("commits", {}).items()))
    remarks = [*REMARKS, *([f"Commits: {made}."] if made else [])]
    text = markdown("What loss `moa` proves", findings, command=COMMAND, picture="proofs.png", remarks=remarks)
    (folder / "README.md").write_text(text, encoding="utf-8")
    draw_proofs(findings, folder / "proofs.png")


if __name__ == "__main__":
    run_cli(lambda: tyro.cli(prove, prog="python -m recipes.moa_proofs"))
