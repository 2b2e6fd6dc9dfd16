"""Inference on a Ray cluster from start to end: cut into shares, have them asked, join them."""

import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cot_reward.distributed.plan import Growth, Plan
from cot_reward.distributed.pool import Pool, connect, count_workers
from cot_reward.distributed.queue import Queue
from cot_reward.distributed.settings import RaySettings
from cot_reward.distributed.worker import Work
from cot_reward.errors import UserError
from cot_reward.inference.dry_run import dry_run
from cot_reward.inference.gather import GatherSettings, check_out, gather
from cot_reward.inference.ledger import Ledger
from cot_reward.inference.plan import Run
from cot_reward.inference.settings import InferenceSettings
from cot_reward.inference.start import check_bad_records, warn_of_held_out


def infer_on_ray(on_ray: RaySettings, settings: InferenceSettings, api_key: str) -> int:
    """Run inference on the cluster; returns the exit code. Raises UserError."""
    _check(on_ray, settings)
    if on_ray.starts_servers and settings.model:
        # As serve.sh names it.
        settings = replace(settings, model=settings.model.rstrip("/"))
    if settings.dry_run:
        return dry_run(settings)
    check_out(settings.out)
    connect(on_ray)
    import ray

    try:
        return _run(on_ray, settings, api_key)
    finally:
        ray.shutdown()


def _check(on_ray: RaySettings, settings: InferenceSettings) -> None:
    """Raises UserError for settings that exclude each other."""
    if settings.shard or settings.limit is not None:
        raise UserError("--shard and --limit: infer_ray.py cuts all comparisons into shares itself")
    if Path("-") in settings.data:
        raise UserError("--data -: every worker reads the data; name files")
    if on_ray.starts_servers and settings.servers:
        raise UserError("--servers: with --gpus-per-server every worker asks its own server")
    if on_ray.starts_servers and not (settings.model or on_ray.serve_command):
        raise UserError("--gpus-per-server: name the folder of the model with --model")


class _Counts(NamedTuple):
    comparisons: int
    # Responses that can be asked for.
    units: int


def _read_all(settings: InferenceSettings) -> _Counts:
    """Read the data as every share will, so that what is wrong with them is told before anything.

    Raises UserError.
    """
    with Ledger(None) as ledger:
        run = Run(settings, ledger)
        check_bad_records(run)
        warn_of_held_out(run)
        return _Counts(len(ledger), run.expected_units - run.bad_units)


def _run(on_ray: RaySettings, settings: InferenceSettings, api_key: str) -> int:
    from tqdm import tqdm

    workers = count_workers(on_ray, settings.processes)
    with Plan(settings) as plan:
        counts = _read_all(settings)
        missing = plan.cut(on_ray.shares, workers, counts.comparisons)
        growth = Growth(plan)
        for number in plan.numbers:
            growth.lines(number)
        queue = Queue(missing, range(1, min(workers, len(missing)) + 1), on_ray.attempts)
        bar = tqdm(total=counts.units, initial=growth.total, unit="cot", mininterval=1.0)

        def look() -> None:
            bar.set_postfix(shares=f"{plan.count - queue.left}/{plan.count}", refresh=False)
            bar.update(growth.total - bar.n)

        def say(line: str) -> None:
            bar.write(line, file=sys.stderr)

        _raise_on_sigterm()
        work = _work(on_ray, plan)
        pool = Pool(queue, growth, work, settings.processes, api_key, say, look)
        try:
            pool.ask()
            if pool.unreadable:
                pool.stop()
                say(f"error: {pool.unreadable}")
                return 3
        except KeyboardInterrupt:
            say("stopping: waiting for the requests in flight")
            pool.stop()
            say("stopped early; the same command continues")
            return 130
        finally:
            pool.end()
            bar.close()
        if problems := _problems(queue, plan):
            print("\n".join(problems), file=sys.stderr)
            return 1
        shares = [plan.share(number) for number in plan.numbers]
        code = gather(GatherSettings(shares, settings.out), at_once=workers)
        if (settings.out / "summary.json").exists():
            plan.gathered()
        return code


def _problems(queue: Queue, plan: Plan) -> list[str]:
    """What is not finished, in words."""
    found = [
        f"error: share {number} of {plan.count} was given up ({plan.folder}/share-{number}.log): "
        f"{why}"
        for number, why in queue.given_up.items()
    ]
    # No workers were seated for no shares.
    if queue.left and not queue.workers:
        found.append(f"error: every worker was given up; {queue.left} shares are not finished")
    if found:
        found.append("everything before is kept, the same command continues")
    return found


def _work(on_ray: RaySettings, plan: Plan) -> Work:
    settings, gpus = plan.settings, on_ray.gpus_per_server or 0
    serve: list[str] = []
    if on_ray.starts_servers:
        if on_ray.serve_command:
            serve = shlex.split(on_ray.serve_command)
        else:
            serve = [str(Path(__file__).parents[2] / "serve.sh"), str(settings.model)]
        serve += shlex.split(on_ray.serve_flags)
        if gpus > 1 and "parallel-size" not in on_ray.serve_flags:
            serve += ["--tensor-parallel-size", str(gpus)]
    return Work(
        Path.cwd(), plan.folder, plan.token, plan.config, plan.count, settings.api_key_env,
        tuple(serve), gpus,
    )  # fmt: skip


def _raise_on_sigterm() -> None:
    """SIGTERM is as Ctrl-C. Ray has set a handler of its own."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
