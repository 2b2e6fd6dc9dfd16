"""The chain, top to bottom: find what is done, run what is left, each step by its own command."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from cot_reward.chain.commands import PYTHON
from cot_reward.chain.machine import count_gpus, machine_environment, serving_flags
from cot_reward.chain.outcome import set_results
from cot_reward.chain.processes import (
    Processes,
    StopChainError,
    serve_command,
    shown,
    stop_on_signals,
)
from cot_reward.chain.rounds import is_needed
from cot_reward.chain.settings import Profile, Request
from cot_reward.chain.state import Finding, Records
from cot_reward.chain.step import Step
from cot_reward.chain.steps import Chain
from cot_reward.chain.trainings import continued, write_dataset_info
from cot_reward.errors import UserError, nearest
from cot_reward.evaluation.rounds import is_round_folder
from cot_reward.evaluation.watch import WORSE
from cot_reward.model_folder import fault_of_model
from cot_reward.settings import read_yaml
from cot_reward.sft.chat_template import check_template
from cot_reward.sft.config import describe
from cot_reward.store import lock, write_jsonl
from cot_reward.tasks.prompts import TEMPLATE_FILE

# In a dry run; a server gets a free port when it starts.
SHOWN_PORT = 8000


def run_chain(profile: Profile, request: Request) -> int:
    """Run the steps that are wanted and not done; the exit code. Raises UserError."""
    gpus = count_gpus(profile)
    chain = Chain(profile, gpus)
    steps = list(chain.steps())
    wanted = wanted_steps(steps, request)
    missing = _missing_files(profile)
    flags = serving_flags(profile, gpus)
    environment = machine_environment(gpus)
    print("export " + " ".join(f"{name}={value}" for name, value in environment.items()))
    if request.dry_run:
        _show(steps, wanted, Records(profile.runs), profile, flags)
        if missing:
            print(f"\nBefore it can start: {missing}")
        return 0
    if missing:
        raise UserError(missing)
    with ExitStack() as locks:
        for _, run in chain.runs():
            locks.enter_context(_lock(run))
            write_dataset_info(run, *chain.trainings(run))
        records = Records(profile.runs)
        if request.adopt:
            return _adopt(wanted, records)
        stop_on_signals()
        try:
            with Processes(environment, profile.port, flags) as processes:
                _run(steps, wanted, records, processes, chain)
            outcomes = set_results(chain, records)
        except StopChainError as stopped:
            print(f"stopped ({stopped}); the same command goes on from here", flush=True)
            return 128 + stopped.number
    for outcome in outcomes:
        if outcome.told:
            print(outcome.told, flush=True)
    return WORSE if any(outcome.worse for outcome in outcomes) else 0


def wanted_steps(steps: Sequence[Step], request: Request) -> list[Step]:
    """The steps that a start is about. Raises UserError for a name that no step has."""
    if request.only:
        if request.first or request.last:
            raise UserError("--only does not go with --from or --to")
        for name in request.only:
            _positions(steps, name)
        return [step for step in steps if any(matches(step.name, name) for name in request.only)]
    first = _positions(steps, request.first)[0] if request.first else 0
    last = _positions(steps, request.last)[-1] if request.last else len(steps) - 1
    if first > last:
        raise UserError(f"--from {request.first} comes after --to {request.last}")
    return list(steps[first : last + 1])


def matches(name: str, wanted: str) -> bool:
    """Whether the wanted parts stand in the name one after another: stage1 in seed0/stage1.

    Steps of a later round of DPO are meant only where the round is named: stage3 is stage 3.
    """
    parts, sought = name.split("/"), wanted.strip("/").split("/")
    return any(
        parts[start : start + len(sought)] == sought
        and not (start and is_round_folder(parts[start - 1]))
        for start in range(len(parts))
    )


def _positions(steps: Sequence[Step], wanted: str) -> list[int]:
    found = [number for number, step in enumerate(steps) if matches(step.name, wanted)]
    if not found:
        names = dict.fromkeys(step.name for step in steps)
        raise UserError(
            f"no step '{wanted}'.{nearest(wanted, names)} The steps: {', '.join(names)}"
        )
    return found


def _missing_files(profile: Profile) -> str:
    """A message about the files of the profile that are not there; "" when all are."""
    names = [
        "world", "stage1", "stage1_export", "stage2", "stage2_export", "inference", "merge",
        "stage3", "control", "control_rejection", "control_rejection_export", "accelerate",
    ]  # fmt: skip
    if not profile.world:
        names += ["cold_start", "cold_start_media_root", "sampling", "sampling_image_root"]
        names += ["fresh", "fresh_image_root", "heldout", "heldout_image_root"]
        names += ["validation", "validation_image_root"]
    named = [(name, getattr(profile, name)) for name in names]
    missing = [
        f"{name}: {path}"
        for name, value in named
        for path in (value if isinstance(value, list) else [value])
        if path and not path.exists()
    ]
    if not missing:
        return ""
    listed = "".join(f"\n  {line}" for line in missing)
    return (
        f"the profile names what is not there:{listed}\ndataset/README.md says where data come from"
    )


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold a folder of results. Raises UserError while another chain works in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".chain.lock").open("w") as file:
        lock(file, folder, "another chain is working there", "a folder")
        yield


def _run(
    steps: Sequence[Step],
    wanted: Sequence[Step],
    records: Records,
    processes: Processes,
    chain: Chain,
) -> None:
    """Run what is left of the wanted steps, in order."""
    for step in wanted:
        needed, why = is_needed(step, records)
        if needed is False:
            print(f"== {step.name}: {why}", flush=True)
            continue
        found = records.find(step)
        if found.condition == "done":
            print(f"== {step.name}: done", flush=True)
            continue
        if step.name == "report":
            write_jsonl(chain.profile.runs / "steps.jsonl", records.seconds(steps))
        print(f"== {step.name}: {step.title} ({found.reason})", flush=True)
        # Seeds may be trained by several chains at once, on several machines, say; what all of them
        # need is made by one.
        is_shared = bool(chain.profile.seeds) and not step.name.startswith("seed")
        with _lock(chain.profile.runs) if is_shared else nullcontext():
            _run_step(_prepared(step, found, records), records, processes, chain)


def _prepared(step: Step, found: Finding, records: Records) -> Step:
    """The step with its final command, when its folder is ready for it. Raises UserError."""
    if found.condition == "foreign":
        raise UserError(
            f"{step.name}: {found.reason}; move it away, or take it as this step's result: "
            f"scripts/chain.sh ... --only {step.name} --adopt"
        )
    if found.condition == "anew" and (kept := records.set_aside(step)):
        print(f"   the earlier result is now {kept}", flush=True)
    if found.condition == "continue" and step.trains in ("sft", "dpo", "export"):
        return replace(step, command=continued(step))
    return step


def _run_step(step: Step, records: Records, processes: Processes, chain: Chain) -> None:
    records.start(step)
    command = step.command
    if step.model:
        urls = chain.profile.base_url or [processes.serve(step.model)]
        command = step.command_at(urls)
    elif step.trains:
        processes.stop_server()
    if step.sft:
        if step.sft.start.is_dir() and (fault := fault_of_model(step.sft.start)):
            raise UserError(f"{step.name}: {step.sft.start}: {fault}")
        config = read_yaml(step.sft.config)
        template = chain.profile.sft_template or config.get("template")
        check_template(step.sft.start, template)
        told = describe(config, step.sft.config, [step.sft.rows], chain.gpus)
        print(f"   {told}", flush=True)
    print("+ " + shown(command, step.environment), flush=True)
    began = time.monotonic()
    code = processes.run(command, step.environment)
    if code not in step.exit_codes:
        raise UserError(f"{step.name} ended with exit code {code}; the same command goes on here")
    if step.done_file and not step.done_file.exists():
        raise UserError(f"{step.name} ended without {step.done_file}")
    if step.out and step.trains in ("sft", "export", "dpo"):
        # The client compares it with the prompt that it is about to send.
        shutil.copyfile(chain.commands.template, step.out / TEMPLATE_FILE)
    trained = step.trains in ("sft", "export") and chain.profile.sft_template
    if trained and step.out and (step.out / "config.json").exists():
        command = (PYTHON, "scripts/plain_chat.py", str(step.out))
        print("+ " + shown(command, {}), flush=True)
        if code := processes.run(command, {}):
            raise UserError(f"{step.name}: scripts/plain_chat.py ended with exit code {code}")
    records.finish(step, time.monotonic() - began)


def _adopt(wanted: Sequence[Step], records: Records) -> int:
    """Record results that stand there as those of their steps. Raises UserError without one."""
    for step in wanted:
        if records.find(step).condition != "foreign":
            continue
        if step.done_file and not step.done_file.exists():
            raise UserError(f"{step.name}: {step.done_file} is missing; this is no finished result")
        records.start(step)
        records.finish(step, 0.0, adopted=True)
        print(f"== {step.name}: {step.out} is taken as its result, made from the present inputs")
    return 0


def _show(
    steps: Sequence[Step],
    wanted: Sequence[Step],
    records: Records,
    profile: Profile,
    flags: Sequence[str],
) -> None:
    """Print every step with its condition and its command; start nothing."""
    port = profile.port or SHOWN_PORT
    urls = profile.base_url or [f"http://127.0.0.1:{port}/v1"]
    made: set[Path] = set()
    served: Path | None = None
    for step in steps:
        condition, reason = _foreseen(step, records, made)
        if step not in wanted:
            condition = "skip" if condition != "done" else condition
            reason = f"outside of this start; {reason}" if reason else reason
        elif condition == "left":
            made |= {path for path in (step.out, step.done_file) if path}
        print(f"{condition:5} {step.name}: {step.title}" + (f" ({reason})" if reason else ""))
        if condition != "left":
            continue
        if step.model and step.model != served and not profile.base_url:
            served = step.model
            print("      + " + shown(serve_command(served, port, flags), {}) + " &")
        if step.trains:
            served = None
        print("      + " + shown(step.command_at(urls), step.environment))


def _foreseen(step: Step, records: Records, made: set[Path]) -> tuple[str, str]:
    """done, left or skip, and why, before anything has run.

    `made` are results of steps that are left.
    """
    needed, condition_of_need = is_needed(step, records, made)
    if needed is False:
        return "skip", condition_of_need
    inputs = (*step.inputs, *step.added_inputs)
    fresh = [path for path in inputs if made & {path, *path.parents}]
    found = records.find(step)
    if found.condition == "done" and fresh:
        return "left", f"{fresh[0]} is made anew"
    if found.condition == "done":
        return "done", ""
    return "left", ", ".join(filter(None, (found.reason, condition_of_need)))
