"""Rows are read and checked with the model's processor, before a model is loaded."""

from pathlib import Path

import pytest
from cot_reward.dpo import trl_settings
from cot_reward.dpo.load import load_train_and_eval
from cot_reward.dpo.pairs import load_pairs
from cot_reward.errors import UserError
from cot_reward.media import images
from helpers.dpo import collator_for, row, save_pictures, write


def test_a_row_that_max_length_would_cut_is_a_bad_one(
    base: Path, folder: Path, tmp_path: Path
) -> None:
    """By the tokens that the collator makes, above and below the bound on pixels."""
    rows = [row(["1.png", "2.png"]), row(["3.png"], chosen="1" + " red" * 50), row(["0.png"])]
    path = write(tmp_path / "rows.jsonl", rows)
    flags = f"--data_path {path} --image_folder {folder} --model_name_or_path {base} --use_cpu "
    flags += "--bf16 false --image_max_pixels 6000 --max_length"
    made = collator_for(base, folder, 6000)(list(load_pairs(path, str(folder)).dataset()))
    lengths = made["attention_mask"].sum(dim=1).view(2, -1).amax(dim=0).tolist()
    longest = max(lengths)
    parsed = trl_settings.parse([*flags.split(), str(longest)])
    assert not load_train_and_eval(*parsed)[0].problems
    parsed = trl_settings.parse([*flags.split(), str(longest - 1), "--skip_bad_rows"])
    (problem,) = load_train_and_eval(*parsed)[0].problems
    line = lengths.index(longest) + 1
    assert problem == (
        f"{path}:{line}: has {longest} tokens and would be cut by --max_length {longest - 1}"
    )
    with pytest.raises(UserError, match=f"line {line}: has {longest} tokens"):
        load_train_and_eval(*trl_settings.parse([*flags.split(), str(longest - 1)]))


def test_folders_are_checked_before_rows_are_read(base: Path, tmp_path: Path) -> None:
    """`gone.jsonl` is not there: the folders come first."""
    (tmp_path / "file").write_text("")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    for model, output, message in [
        (adapter, tmp_path / "out", f"--model_name_or_path {adapter}: holds a LoRA adapter"),
        (tmp_path, tmp_path / "out", f"--model_name_or_path {tmp_path}: has no config.json"),
        (base, base, f"--output_dir {base}: is the folder of the model that is trained"),
        (base, tmp_path / "file/out", "/file/out: cannot be written: Not a directory"),
        (base, tmp_path / "file", "/file: cannot be written: File exists"),
        (base, Path("/proc/out"), "--output_dir /proc/out: cannot be written: No such file"),
    ]:
        flags = f"--data_path gone.jsonl --model_name_or_path {model} --output_dir {output} "
        with pytest.raises(UserError) as caught:
            load_train_and_eval(*trl_settings.parse([*flags.split(), "--use_cpu", "--bf16=false"]))
        assert message in str(caught.value)


def test_a_second_start_decodes_only_what_changed(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with a reference that runs live, and for the held-out rows."""
    media = tmp_path / "media"
    media.mkdir()
    save_pictures(media)
    train, held_out = (
        write(tmp_path / f"{name}.jsonl", [row(list(images))])
        for name, images in (("train", ("0.png", "1.png")), ("eval", ("1.png", "2.png")))
    )
    decoded: list[str] = []
    decode = images.decode_checked

    def counted(source: bytes, path: Path, max_pixels: int) -> object:
        decoded.append(path.name)
        return decode(source, path, max_pixels)

    monkeypatch.setattr(images, "decode_checked", counted)

    def start(run: str) -> list[str]:
        decoded.clear()
        flags = (
            f"--model_name_or_path {base} --data_path {train} --eval_data_path {held_out} "
            f"--image_folder {media} --output_dir {tmp_path}/{run} --reference_cache false "
            "--use_cpu --bf16 false --report_to none"
        )
        load_train_and_eval(*trl_settings.parse(flags.split()))
        return sorted(decoded)

    assert start("one") == ["0.png", "1.png", "2.png"]
    assert start("two") == []
    (media / "1.png").write_bytes((media / "3.png").read_bytes())
    assert start("two") == ["1.png"]
    (media / "2.png").write_bytes((media / "2.png").read_bytes()[:900])
    for _ in range(2):
        with pytest.raises(UserError, match=r"2\.png: broken or cut short"):
            start("two")
