"""Where the runs of a table take place: in processes here, or on a Ray cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from recipes.jobs import Job, Outcome, Processes, run_job


def launch_local(jobs: list[Job], workers: int) -> list[Outcome]:
    """Run jobs in ``workers`` processes at a time; SIGTERM stops them behind their checkpoints, as Ctrl-C does."""
    outcomes, processes = [], Processes()
    previous = signal.signal(signal.SIGTERM, lambda number, frame: processes.stop())
    try:
        with ThreadPoolExecutor(workers) as pool, tqdm(total=len(jobs), unit="run") as bar:
            for outcome in pool.map(partial(run_job, processes=processes), jobs):
                outcomes.append(outcome)
                bar.write(outcome.message)
                bar.update()
    finally:
        signal.signal(signal.SIGTERM, previous)
    return outcomes


def launch_ray(jobs: list[Job], workers: int) -> list[Outcome]:
    """Run jobs on a Ray cluster, one CPU each (the extra ``ray``; folders must be on a shared disk)."""
    try:
        import ray
    except ImportError as error:
        raise ValueError("--launcher ray needs the extra: pip install -e '.[ray]'") from error
    # a worker's working folder may be another one
    jobs = [replace(job, runs=str(Path(job.runs).resolve()), results=str(Path(job.results).resolve())) for job in jobs]
    ray.init(ignore_reinit_error=True, num_cpus=workers if not os.environ.get("RAY_ADDRESS") else None)
    task = ray.remote(num_cpus=1)(run_job)
    left, outcomes = [task.remote(job) for job in jobs], []
    with tqdm(total=len(left), unit="run") as bar:
        while left:
            done, left = ray.wait(left)
            outcomes.append(ray.get(done[0]))
            bar.write(outcomes[-1].message)
            bar.update()
    ray.shutdown()
    return outcomes


LAUNCHERS: dict[str, Callable[[list[Job], int], list[Outcome]]] = {"local": launch_local, "ray": launch_ray}
