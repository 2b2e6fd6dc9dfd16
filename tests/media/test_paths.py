"""Paths of media: a path never leads out of its root."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from cot_reward.errors import UserError
from cot_reward.media.paths import MediaError, media_prefix, resolve
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
