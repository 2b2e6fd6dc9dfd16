"""scripts/prepare_data.py download, against a local server that speaks the hub's protocol."""

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from cot_reward.errors import UserError
from cot_reward.preparing.download import unpack
from helpers.environments import REPO
from helpers.hub import Hub, running

BIG = bytes(range(256)) * 4000


def run(hub: Hub, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`download owner/set` as a user runs it, with the local server in place of the hub."""
    env = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5", "HF_HUB_ETAG_TIMEOUT": "5", "no_proxy": "127.0.0.1",
        "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    command = [sys.executable, "scripts/prepare_data.py", "download", "owner/set", "--out",
               str(folder / "out"), *words]  # fmt: skip
    return subprocess.run(
        command, cwd=REPO, env=env, capture_output=True, text=True, check=False, timeout=120
    )


def tar(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def test_size_and_licence_come_first(tmp_path: Path) -> None:
    with running(Hub({"data.json": b"[]", "big.bin": BIG})) as hub:
        done = run(hub, tmp_path)
        assert done.returncode == 0, done.stderr
        assert "2 files, 1.02MB; licence: mit" in done.stdout
        assert "--accept fetches it" in done.stdout
        assert hub.sent == []
        hub.licence = None
        assert "licence: not said" in run(hub, tmp_path).stdout


def test_all_files_come_and_archives_are_unpacked(tmp_path: Path) -> None:
    pictures = {f"images/{n}.png": bytes([n]) * 3000 for n in range(20)}
    whole = tar(pictures)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("v/a.mp4", b"video")
    files = {
        "data.json": b"[1]", "images.tar.gz.00": whole[:100], "images.tar.gz.01": whole[100:],
        "sub/videos.zip": buffer.getvalue(),
    }  # fmt: skip
    with running(Hub(files)) as hub:
        done = run(hub, tmp_path, "--accept")
        assert done.returncode == 0, done.stderr
        out = tmp_path / "out"
        assert {name: (out / name).read_bytes() for name in files | pictures} == files | pictures
        assert (out / "sub/v/a.mp4").read_bytes() == b"video"
        # A second start fetches and unpacks nothing.
        sent = len(hub.sent)
        (out / "images/3.png").unlink()
        assert run(hub, tmp_path, "--accept").returncode == 0
        assert len(hub.sent) == sent
        assert not (out / "images/3.png").exists()


def test_a_part_of_the_files_is_fetched_by_patterns(tmp_path: Path) -> None:
    with running(Hub({"a.json": b"[]", "b.bin": BIG})) as hub:
        assert run(hub, tmp_path, "--accept", "--files", "*.json").returncode == 0
        assert [name for name, _ in hub.sent] == ["a.json"]
        failed = run(hub, tmp_path, "--files", "*.csv")
        assert (failed.returncode, "no file is called *.csv" in failed.stderr) == (2, True)


def test_a_cut_answer_is_continued(tmp_path: Path) -> None:
    # Longer than the pieces in which huggingface_hub reads.
    huge = BIG * 25
    hub = Hub({"big.bin": huge}, cut={"big.bin": len(huge) - 9}, times=Counter({"big.bin": 1}))
    with running(hub):
        done = run(hub, tmp_path, "--accept")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out/big.bin").read_bytes() == huge
        # It went on, and did not begin again.
        assert [start > 0 for _, start in hub.sent] == [False, True]


def test_another_content_than_the_hub_names_is_removed(tmp_path: Path) -> None:
    with running(Hub({"a.json": b"[]", "big.bin": BIG}, wrong={"big.bin"})) as hub:
        failed = run(hub, tmp_path, "--accept")
        assert failed.returncode == 2
        assert "big.bin: not the content that the hub names, and removed" in failed.stderr
        hub.wrong.clear()
        assert run(hub, tmp_path, "--accept").returncode == 0
        assert (tmp_path / "out/big.bin").read_bytes() == BIG


def test_faults_are_errors_and_not_results(tmp_path: Path) -> None:
    with running(Hub({"a.json": b"[]", "gone.bin": BIG}, gone={"gone.bin"})) as hub:
        failed = run(hub, tmp_path, "--accept")
        assert failed.returncode == 2
        assert "Traceback" not in failed.stderr
        assert "complete" not in failed.stdout
    with running(Hub({"big.bin": BIG}, cut={"big.bin": 9}, times=Counter({"big.bin": 99}))) as hub:
        failed = run(hub, tmp_path / "x", "--accept")
        assert failed.returncode == 2
        assert "Traceback" not in failed.stderr


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x")
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "../../../evil.txt"])
@pytest.mark.parametrize("ending", ["tar", "zip"])
def test_no_archive_leaves_its_folder(tmp_path: Path, name: str, ending: str) -> None:
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    data = tar({name: b"x"}, "w") if ending == "tar" else zipped(name)
    (folder / f"x.{ending}").write_bytes(data)
    with pytest.raises(UserError, match=f"x.{ending}: cannot be unpacked"):
        unpack(folder)
    assert list(tmp_path.rglob("evil.txt")) == []


def test_absolute_names_are_taken_within_the_folder_or_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar({"/abs/evil.txt": b"x"}, "w"))
    unpack(tmp_path)
    assert (tmp_path / "abs/evil.txt").read_bytes() == b"x"
    (tmp_path / "x.tar").unlink()
    (tmp_path / "x.zip").write_bytes(zipped("/abs/evil.txt"))
    with pytest.raises(UserError, match="leads out of the folder"):
        unpack(tmp_path)
    assert not Path("/abs/evil.txt").exists()


def test_links_and_devices_in_a_tar_file_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=r"x.tar: cannot be unpacked"):
        unpack(tmp_path)
    assert not (tmp_path / "link").exists()


def test_a_broken_archive_is_named_and_unpacked_once_mended(tmp_path: Path) -> None:
    whole = tar({"a.txt": os.urandom(50_000)})
    (tmp_path / "x.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"x.tar.gz: cannot be unpacked"):
        unpack(tmp_path)
    (tmp_path / "x.tar.gz").write_bytes(whole)
    unpack(tmp_path)
    assert (tmp_path / "a.txt").stat().st_size == 50_000
    assert json.loads((tmp_path / ".unpacked.json").read_text()) == {"x.tar.gz": len(whole)}


def test_parts_are_joined_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    files = {f"{n}.txt": os.urandom(3000) for n in range(12)}
    data = tar(files, "w")
    size = len(data) // 11
    for number in range(12):
        part = data[number * size : (number + 1) * size]
        (tmp_path / f"x.tar.{number}").write_bytes(part)
    (tmp_path / "x.tar.md").write_text("about the archive")
    unpack(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in files} == files


def test_archives_in_archives_are_unpacked_too(tmp_path: Path) -> None:
    inner = tar({"deep.txt": b"x"})
    (tmp_path / "x.tar").write_bytes(tar({"sub/inner.tar.gz": inner}, "w"))
    unpack(tmp_path)
    assert (tmp_path / "sub/deep.txt").read_bytes() == b"x"


def test_a_cut_archive_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    data = tar({f"{n}.txt": b"x" * 600 for n in range(6)}, "w")
    (tmp_path / "x.tar").write_bytes(data[: 3 * 1536])
    with pytest.raises(UserError, match=r"x.tar: cannot be unpacked: damaged or cut short"):
        unpack(tmp_path)


def test_a_set_that_nobody_knows_is_told(tmp_path: Path) -> None:
    def script(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "scripts/prepare_data.py", *words], cwd=REPO, capture_output=True,
            text=True, check=False,
        )  # fmt: skip

    assert "no set is called 'pickapick'. Did you mean 'pickapic'?" in (
        script("download", "pickapick").stderr
    )
    assert "yuvalkirstain/pickapic_v2" in script("list").stdout
    with running(Hub({})) as hub:
        env = os.environ | {"HF_ENDPOINT": hub.url, "no_proxy": "127.0.0.1"}
        failed = subprocess.run(
            [sys.executable, "scripts/prepare_data.py", "download", "other/set"], cwd=REPO,
            capture_output=True, text=True, env=env, check=False,
        )  # fmt: skip
        assert failed.returncode == 2
        assert "other/set: no such data set" in failed.stderr
