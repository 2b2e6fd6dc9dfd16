"""Files that survive a kill, a full disk and a second writer."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cot_reward import store
from cot_reward.errors import UserError
from cot_reward.store import (
    Journal,
    journal_entries,
    remove_leftovers,
    write_cache_file,
    write_json,
    write_text_file,
)
from helpers.rows import read_lines

SCRIPTS = Path(store.__file__).parent.parent
PRELUDE = """
import resource, sys
from pathlib import Path
from cot_reward.errors import UserError
from cot_reward.store import Journal, journal_entries, write_text_file
"""


def python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program with the package on its path."""
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + program, *map(str, arguments)],
        cwd=SCRIPTS, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


# --- atomic files ---------------------------------------------------------------------------------


def test_a_new_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "deep/x.json"
    write_json(path, {"a": "é"})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_cache_file_is_complete_and_readable_by_all(tmp_path):
    path = tmp_path / "deep/x.png"
    write_cache_file(path, b"old")
    write_cache_file(path, b"\0new\xff")
    assert path.read_bytes() == b"\0new\xff"
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.jsonl"
    write_text_file(path, "old\n")

    def lines():
        yield "new\n" * 10_000
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_text_file(path, lines())
    assert path.read_text() == "old\n"
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.jsonl"
    write_text_file(path, "old\n")
    program = """
import os, signal
def lines():
    yield "new\\n" * 10_000
    os.kill(os.getpid(), signal.SIGKILL)
write_text_file(Path(sys.argv[1]), lines())
"""
    assert python(program, path).returncode == -signal.SIGKILL
    assert path.read_text() == "old\n"


# A limit on the size of files stands for a full disk: the write stops half-way with an OSError.
LIMITED = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"


def test_a_full_disk_leaves_the_old_file_and_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    write_text_file(path, "old\n")
    program = """
try:
    write_text_file(Path(sys.argv[1]), ("x" * 999 + "\\n" for _ in range(1000)))
except UserError as error:
    sys.exit(f"error: {error}")
"""
    done = python(LIMITED + program, path)
    assert done.returncode == 1
    assert f"{path}: cannot be written: File too large" in done.stderr
    assert path.read_text() == "old\n"
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


# --- the journal ----------------------------------------------------------------------------------


def entries(path: Path) -> list[dict[str, object]]:
    with Journal(path) as journal:
        return [entry for _, entry in journal_entries(journal.path)]


def test_entries_come_back_in_order(tmp_path):
    path = tmp_path / "deep/journal.jsonl"
    with Journal(path) as journal:
        assert [entry for _, entry in journal_entries(journal.path)] == []
        journal.append([{"n": 0}, {"n": 1, "text": "line\nbreak é 🐈 \u2028"}])
        journal.append([])
        journal.append([{"n": 2}])
        assert [entry["n"] for _, entry in journal_entries(journal.path)] == [0, 1, 2]
    assert entries(path)[1]["text"] == "line\nbreak é 🐈 \u2028"


@pytest.mark.parametrize("torn", [b"{", b'{"n": 2', b'{"n": 2}', b"\xc3", b"x" * 200_000])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n": 1}\n' + torn)
    with Journal(path) as journal:
        assert [entry["n"] for _, entry in journal_entries(journal.path)] == [0, 1]
        journal.append([{"n": 2}])
    assert [entry["n"] for entry in entries(path)] == [0, 1, 2]


def test_a_torn_first_line_leaves_an_empty_journal(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"n"' + b"x" * 100_000)
    assert entries(path) == []
    assert path.stat().st_size == 0


def test_damage_from_outside_is_named_with_its_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n": \n{"n": 2}\n')
    with pytest.raises(UserError, match=r"journal\.jsonl:2: damaged"):
        entries(path)


def test_a_second_writer_is_refused_and_a_third_after_the_first_is_not(tmp_path):
    path = tmp_path / "journal.jsonl"
    program = """
try:
    Journal(Path(sys.argv[1])).append([{"n": 1}])
except UserError as error:
    sys.exit(f"error: {error}")
"""
    with Journal(path) as journal:
        done = python(program, path)
        assert done.returncode == 1
        assert "another run is writing" in done.stderr
        with pytest.raises(UserError, match="another run is writing"):
            Journal(path)
        journal.append([{"n": 0}])
    assert python(program, path).returncode == 0
    assert [entry["n"] for entry in entries(path)] == [0, 1]


def test_kill_9_at_random_points_keeps_each_entry_exactly_once(tmp_path):
    """Each life continues at the first number that the journal lacks, as a resumed run does.

    Before each append the writer prints how many entries are on the disk. After the kill all of
    them must be there.
    """
    path = tmp_path / "journal.jsonl"
    program = """
with Journal(Path(sys.argv[1])) as journal:
    done = sum(1 for _ in journal_entries(journal.path))
    while True:
        print(done, flush=True)
        journal.append([{"n": n, "text": "x" * 3000} for n in range(done, done + 3)])
        done += 3
"""
    draw = random.Random(7)
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + program, path],
            cwd=SCRIPTS, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert writer.stdout is not None
        printed = [writer.stdout.readline()]
        time.sleep(draw.uniform(0, 0.05))
        writer.kill()
        printed += writer.stdout.read().splitlines(keepends=True)
        writer.wait()
        writer.stdout.close()
        kept = max(int(line) for line in printed if line.endswith("\n"))
        numbers = [entry["n"] for entry in entries(path)]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= kept
    assert len(entries(path)) > 0


def test_a_full_disk_leaves_the_journal_whole_and_it_continues(tmp_path):
    path = tmp_path / "journal.jsonl"
    program = """
with Journal(Path(sys.argv[1])) as journal:
    for n in range(100):
        try:
            journal.append([{"n": n, "text": "x" * 900}])
        except OSError as error:
            print(n, error.strerror)
            # As if somebody freed some space while the program runs.
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            break
"""
    done = python(LIMITED + program, path)
    assert done.returncode == 0, done.stderr
    failed, message = done.stdout.split(" ", 1)
    assert message.strip() == "File too large"
    assert [entry["n"] for entry in read_lines(path)] == list(range(int(failed)))
    with Journal(path) as journal:
        journal.append([{"n": int(failed)}])
    assert [entry["n"] for entry in entries(path)] == list(range(int(failed) + 1))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a tmpfs")
def test_a_disk_that_is_really_full(tmp_path):
    """In a mount namespace of its own, so that nothing is left behind."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    program = """
journal = Journal(Path(sys.argv[1]) / "journal.jsonl")
n = 0
try:
    while True:
        journal.append([{"n": n, "text": "x" * 900}])
        n += 1
except OSError as error:
    assert error.errno == 28
journal.close()
assert [entry["n"] for _, entry in journal_entries(journal.path)] == list(range(n))
try:
    write_text_file(Path(sys.argv[1]) / "summary.json", "x" * 100_000)
except UserError as error:
    print(error)
"""
    script = tmp_path / "program.py"
    script.write_text(PRELUDE + program)
    mount = f'mount -t tmpfs -o size=64k none "{mounted}" || exit 77; "$0" "{script}" "{mounted}"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, sys.executable],
        env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no tmpfs here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert "summary.json: cannot be written: No space left on device" in done.stdout


def test_only_own_leftovers_are_removed(tmp_path):
    killed = tmp_path / ".summary.json.x3_abc9z"
    others = [tmp_path / ".notes.json.swp", tmp_path / "summary.json"]
    for path in (killed, *others):
        path.write_text("x")
    folder = tmp_path / ".d.jsonl.abcdefgh"
    folder.mkdir()
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*others, folder])
