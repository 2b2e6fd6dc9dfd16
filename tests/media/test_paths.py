"""Paths of media: a path never leads out of its root."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from cot_reward.errors import UserError
from cot_reward.media.paths import EscapeError, MediaError, media_path, media_prefix, resolve
from helpers.pictures import noise, reason_of, saved
from hypothesis import given
from hypothesis import strategies as st


def test_the_image_root_lies_in_the_media_root(tmp_path: Path) -> None:
    (tmp_path / "media/images").mkdir(parents=True)
    assert media_prefix(tmp_path / "media/images", tmp_path / "media") == "images"
    assert media_prefix(tmp_path / "media", tmp_path / "media") == ""
    with pytest.raises(UserError, match="not inside --media-root"):
        media_prefix(tmp_path / "elsewhere", tmp_path / "media")


def test_resolve(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    inside = saved(root / "sub/a.png", noise("RGB", 30, 30, 0))
    outside = saved(tmp_path / "b.png", noise("RGB", 30, 30, 0))
    (root / "out.png").symlink_to(outside)
    (root / "in.png").symlink_to(inside)
    (root / "folder").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")

    for path in ("sub/a.png", "sub/../sub/a.png", "in.png", "./sub//a.png"):
        assert resolve(path, root) == inside
    for path in (
        str(inside),
        "/etc/passwd",
        "../b.png",
        "sub/../../b.png",
        "out.png",
        "folder/b.png",
        "../rootless/x.png",
    ):
        assert reason_of(resolve, path, root) == "escapes"
    for path in ("nothing.png", "sub", "", "a\0b", "x" * 5000, "loop", "https://a.b/c.png"):
        assert reason_of(resolve, path, root) == "missing"


def test_root_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    image = saved(tmp_path / "real/a.png", noise("RGB", 30, 30, 0))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert resolve("a.png", tmp_path / "link") == image


@given(parts=st.lists(st.sampled_from(["..", ".", "a", "out", "b.png", "", "/"]), max_size=6))
def test_resolve_never_leaves_the_root(tmp_path_factory: Any, parts: list[str]) -> None:
    base = tmp_path_factory.getbasetemp() / "hypothesis"
    root = base / "root"
    if not root.exists():
        (root / "a").mkdir(parents=True)
        (base / "b.png").write_bytes(b"x")
        (root / "a/b.png").write_bytes(b"x")
        (root / "a/out").symlink_to(base)
    with contextlib.suppress(MediaError):
        assert resolve("/".join(parts), root).is_relative_to(root.resolve())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("https://host/a.png", r"an address \(https://\.\.\.\)"),
        ("HTTP://host/a.png", "an address"),
        ("file:///data/a.png", r"an address \(file://"),
        ("s3://bucket/a.png", "an address"),
        ("data:image/png;base64,iVBORw0KGgo" + "A" * 999, r"an address \(data:\.\.\.\)"),
        ("iVBORw0KGgo" + "A" * 999, "a picture in base64"),
        ("/9j/" + "A" * 999, "a picture in base64"),
    ],
)
def test_what_is_no_path_is_named_and_not_shown(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        media_path(path, "images")
    assert len(str(caught.value)) < 200
    assert not isinstance(caught.value, EscapeError)


@pytest.mark.parametrize("path", ["a:b.png", "data/a.png", "database:1.png", "9j/AAAA.png", "http"])
def test_other_names_are_paths(path: str) -> None:
    assert media_path(path, "x") == f"x/{path}"


def test_an_absolute_path_is_told_to_be_absolute() -> None:
    with pytest.raises(EscapeError, match="leads out of the image root: it is absolute"):
        media_path("/data/images/a.png", "")


# --- the hub's cache ------------------------------------------------------------------------------
VERSION, CONTENT = "0" * 40, "c" * 64


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A version of a data set as the hub's client keeps it: images/a.png is a link."""
    repository = tmp_path / "hub/datasets--someone--pairs"
    version = repository / "snapshots" / VERSION
    (version / "images").mkdir(parents=True)
    (repository / "blobs").mkdir()
    saved(repository / "blobs" / CONTENT, noise("RGB", 30, 30, 0), format="PNG")
    (version / "images/a.png").symlink_to(f"../../../blobs/{CONTENT}")
    return version


def test_the_links_of_a_snapshot_are_followed(snapshot: Path, tmp_path: Path) -> None:
    content = (snapshot / "../../blobs" / CONTENT).resolve()
    assert resolve("images/a.png", snapshot) == content
    assert resolve("./images/../images/a.png", snapshot) == content
    assert resolve("a.png", snapshot / "images") == content
    assert resolve("images/a.png", snapshot, snapshot / "images") == content
    (tmp_path / "link").symlink_to(snapshot)
    assert resolve("images/a.png", tmp_path / "link") == content


def test_nothing_else_leaves_a_snapshot(snapshot: Path, tmp_path: Path) -> None:
    blobs, images = snapshot.parent.parent / "blobs", snapshot / "images"
    other = tmp_path / "hub/datasets--someone--other"
    (other / "blobs").mkdir(parents=True)
    (blobs / "below").mkdir()
    targets = {
        "other_repository.png": other / "blobs" / CONTENT,
        "no_hash.png": blobs / "secret.png",
        "deeper.png": blobs / "below" / CONTENT,
        "outside.png": tmp_path / "secret.png",
        "other_version.png": snapshot.parent / ("1" * 40) / "a.png",
    }
    for name, target in targets.items():
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(b"x")
        (images / name).symlink_to(target)
        assert reason_of(resolve, f"images/{name}", snapshot) == "escapes", name
    # A content of the cache that leads on, a path that names it, and a folder that leads to it.
    (blobs / ("d" * 64)).symlink_to(tmp_path / "secret.png")
    (images / "further.png").symlink_to(f"../../../blobs/{'d' * 64}")
    (images / "folder").symlink_to("../../../blobs")
    for path in ("images/further.png", f"../../blobs/{CONTENT}", f"images/folder/{CONTENT}"):
        assert reason_of(resolve, path, snapshot) == "escapes", path
    # The image root keeps out what lies beside it, and a folder that is no snapshot keeps all out.
    (snapshot / "b.png").symlink_to(f"../../blobs/{CONTENT}")
    assert reason_of(resolve, "b.png", snapshot, images) == "escapes"
    plain = tmp_path / "media"
    plain.mkdir()
    (plain / "a.png").symlink_to(blobs / CONTENT)
    assert reason_of(resolve, "a.png", plain) == "escapes"
