"""Pages in a real browser: untrusted texts, filters, keys, languages, small screens, large runs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cot_reward import settings
from cot_reward.errors import UserError
from cot_reward.report.run import report, write_comparison
from cot_reward.report.settings import CompareSettings, ReportSettings
from cot_reward.report.thumbnails import Thumbnails
from helpers.browser import needs_chromium, opened
from helpers.evaluation import RIGHT, TURNED, WRONG, finished_demo, judged_run, trained
from helpers.pictures import noise
from helpers.rows import read_lines, write_lines

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    " <b>bold</b> {{ 7*7 }} &amp; \x00\x1b[31m \u2028 \u202eright to left "
)


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    folder.mkdir()
    for number in range(8):
        noise("RGB", 8, 8, number).resize((300, 200)).save(folder / f"{number}.png")
    return folder


def run(folder: Path, verdicts: Any, texts: Any = None, source: str = "made") -> Path:
    """A finished inference whose rows name pictures and have texts of their own."""
    judged_run(folder, verdicts, sources=[source])
    for name in ("correct", "incorrect", "unusable"):
        rows = read_lines(folder / f"{name}.jsonl")
        for row in rows:
            number = int(row["id"].split()[1])
            images = [f"{number % 8}.png", "gone.png" if number == 3 else f"{(number + 1) % 8}.png"]
            row["images"] = images if row["order"] == "given" else images[::-1]
            scores = (
                "Image 1 (8/10); Image 2 (6/10)\nTotal score:\nImage 1: 8+7=15\nImage 2: 6+6=13"
            )
            text = (texts or {}).get(number, "")
            row["conversations"] = [
                {"from": "human", "value": f"Which? Text Caption: [{text}cat {number}]"},
                {"from": "gpt", "value": f"<think>{text}1. Style: {scores}</think>"},
            ]
        write_lines(folder / f"{name}.jsonl", rows)
    summary = {"settings": {"num_samples": 1, "model": "m", "until": "off"},
               "account": {"expected": 2 * len(verdicts)}, "files": {"correct": 3}}  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def compared(media: Path, out: Path, *runs: Path, **flags: Any) -> Path:
    argv = [*runs, "--media-root", media, "--out", out]
    for name, value in flags.items():
        argv += [f"--{name}", *(value if isinstance(value, list) else [value])]
    write_comparison(settings.parse(CompareSettings, "", argv=list(map(str, argv))))
    return out / "report.html"


def text_of(driver: Any, where: str) -> str:
    return str(driver.execute_script(f"return document.querySelector('{where}').textContent"))


def count(driver: Any) -> str:
    return text_of(driver, "#items-count")


def choose(driver: Any, control: str, value: Any) -> None:
    driver.execute_script(
        "const c = document.getElementById(arguments[0]);"
        "if (c.type === 'checkbox') c.checked = arguments[1]; else c.value = arguments[1];"
        "c.dispatchEvent(new Event('input'));",
        control, value,
    )  # fmt: skip


@needs_chromium
def test_texts_of_models_are_shown_and_never_run(media: Path, tmp_path: Path) -> None:
    hostile = run(
        tmp_path / "<b>hostile", [RIGHT, WRONG, TURNED, RIGHT], {1: HOSTILE},
        "</style><script>document.title='owned'</script>",
    )  # fmt: skip
    page = compared(media, tmp_path / "out", hostile, names=["<i>model</i>"])
    assert "<script>document.title" not in page.read_text()
    with opened(page) as driver:
        choose(driver, "items-search", "onerror")
        assert count(driver) == "1 of 1"
        shown = text_of(driver, "#items-detail")
        assert "<script>document.title='owned'</script>" in shown
        assert "<b>bold</b> {{ 7*7 }}" in shown
        assert "<i>model</i>" in shown
        assert driver.title == "comparison"
        assert (
            driver.execute_script("return document.querySelectorAll('pre b, i.model').length") == 0
        )


@needs_chromium
def test_filters_keys_and_both_languages(media: Path, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    before = run(tmp_path / "before", [RIGHT, WRONG, TURNED, RIGHT, WRONG, RIGHT])
    after = run(tmp_path / "after", [RIGHT, RIGHT, RIGHT, RIGHT, WRONG, TURNED])
    with opened(compared(media, tmp_path / "out", before, after)) as driver:
        assert count(driver) == "1 of 6"
        for control, value, wanted in (
            ("items-disagree", True, "1 of 1"), ("items-flips", True, "1 of 2"),
            ("items-result", "wrong", "1 of 4"), ("items-search", "CAT 3", "1 of 1"),
            ("items-search", "no such cat", "0"),
        ):  # fmt: skip
            choose(driver, control, value)
            assert count(driver) == wanted, control
            choose(driver, control, False if value is True else "")
        choose(driver, "items-model", "0")
        choose(driver, "items-flips", True)
        assert count(driver) == "1 of 1"
        assert "cat 2" in text_of(driver, "#items-detail")
        choose(driver, "items-flips", False)
        keys = ActionChains(driver)
        keys.send_keys("j").send_keys("j").send_keys(Keys.ARROW_RIGHT).send_keys("k").perform()
        assert count(driver) == "3 of 6"
        keys.send_keys("/").send_keys("cat 5").send_keys(Keys.ESCAPE).send_keys("j").perform()
        assert count(driver) == "1 of 1"
        # The better candidate is marked, its scores are a table, and a lost picture is told.
        choose(driver, "items-search", "cat 3")
        assert "(better)" in text_of(driver, ".side.better")
        assert text_of(driver, ".text table").replace("\n", "") == (
            "Candidate 18total 15Candidate 26total 13does not add up"
        )
        assert text_of(driver, ".gone") == "a picture that cannot be opened"
        driver.execute_script("document.getElementById('language').click()")
        assert "数据流向" not in text_of(driver, "body")
        assert text_of(driver, "h2 [data-word=scores]") == "得分"
        assert "更好" in text_of(driver, ".side.better")


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (500, True)])
def test_the_page_fits_its_screen(media: Path, tmp_path: Path, width: int, dark: bool) -> None:
    one = run(tmp_path / "one", [RIGHT, WRONG] * 3, {0: "long" * 400})
    with opened(compared(media, tmp_path / "out", one), width, dark=dark) as driver:
        overflow = "return document.documentElement.scrollWidth - window.innerWidth"
        assert driver.execute_script(overflow) <= 0
        assert driver.execute_script("return window.scrollY") == 0
        loaded = "return [...document.images].every((i) => !i.complete || i.naturalWidth > 0)"
        assert driver.execute_script(loaded)
        back = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, back[4:-1].split(","))) < 200) == dark


@needs_chromium
def test_a_large_run_has_its_texts_and_pictures_beside_the_page(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cot_reward.report.page._MOST_INSIDE", 1000)
    monkeypatch.setattr("cot_reward.report.thumbnails.MOST_INSIDE", 2)
    large = run(tmp_path / "large", [RIGHT, WRONG] * 60, {77: "the text of 77 "})
    page = compared(media, tmp_path / "short", large, limit=100)
    assert "The browser has the first 100 of 120 items" in page.read_text()
    page = compared(media, tmp_path / "out", large)
    assert "the text of 77 1. Style" not in page.read_text()
    assert len(list((tmp_path / "out/report_data").glob("texts-*.js"))) == 3
    assert len(list((tmp_path / "out/report_data").glob("*.jpg"))) == 8
    with opened(page) as driver:
        driver.implicitly_wait(5)
        choose(driver, "items-search", "cat 77")
        driver.find_element("css selector", "#items-detail .text")
        assert "the text of 77 1. Style" in text_of(driver, "#items-detail")
        driver.execute_script("document.querySelector('#items-detail img').loading = 'eager'")
        assert "report_data/" in driver.find_element("css selector", ".side img").get_attribute(
            "src"
        )


def test_a_replaced_picture_gets_a_new_thumbnail(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cot_reward.report.thumbnails.MOST_INSIDE", 0)
    (media / "broken.png").write_bytes(b"no picture")
    thumbnails = Thumbnails(media)
    names = [thumbnails.name(f"{which}.png") for which in (0, 1, "broken", "gone")]
    made = [tmp_path / "data" / f"{name}.jpg" for name in names]
    assert list(thumbnails.write(tmp_path / "data", 2)) == names[:2]
    first, time = made[0].read_bytes(), made[1].stat().st_mtime_ns
    made[1].write_bytes(b"kept")
    os.utime(made[1], ns=(time, time))
    # An older file takes the place of the picture, as `mv` leaves it.
    noise("RGB", 8, 8, 99).save(media / "0.png")
    os.utime(media / "0.png", (1e9, 1e9))
    assert list(thumbnails.write(tmp_path / "data", 2)) == names[:2]
    assert made[0].read_bytes() != first
    assert made[1].read_bytes() == b"kept"


def test_the_page_of_a_chain_has_all_seeds_and_the_models_that_it_compares(
    media: Path, tmp_path: Path
) -> None:
    verdicts = {"stage1": [RIGHT, WRONG, WRONG, WRONG], "stage2": [RIGHT, RIGHT, WRONG, WRONG]}
    runs = finished_demo(tmp_path / "runs", [0, 1], verdicts)
    judged_run(runs / "eval_compared_released/sampled", [RIGHT, RIGHT, RIGHT, TURNED])
    argv = ["--runs", runs, "--seeds", 0, 1, "--media-root", media]
    printed = report(settings.parse(ReportSettings, "", argv=list(map(str, argv))))
    assert printed.endswith(f"\n{runs / 'report.html'}")
    assert "stage 3: DPO" in printed
    assert "[report.html](report.html)" in (runs / "results.md").read_text()
    page = (runs / "report.html").read_text()
    assert "Tables and plots: seeds 0, 1; texts, steps and pairs: seed 0" in page
    for model, share in (("stage1", "25.0"), ("stage2", "50.0"), ("released", "87.5")):
        assert f"<td>{model}</td><td>{share} [" in page
    argv += ["--no-page", "--out", tmp_path / "none"]
    report(settings.parse(ReportSettings, "", argv=list(map(str, argv))))
    assert not (tmp_path / "none").exists()


def test_every_folder_of_a_chain_has_a_page(media: Path, tmp_path: Path) -> None:
    def paged(*argv: Any) -> str:
        given = [*argv, "--media-root", media]
        return report(settings.parse(ReportSettings, "", argv=list(map(str, given))))

    inference = run(tmp_path / "infer", [RIGHT, WRONG])
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    write_lines(pairs / "train.jsonl", [{
        "problem": "Which?", "chosen": "Image 1 is a better one", "rejected": "Image 2 is a better",
        "images": ["0.png", "1.png"], "chosen_answer": 1, "order": "given",
    }])  # fmt: skip
    side = {"rows": 5, "used": 3, "no_partner": 2}
    (pairs / "summary.json").write_text(json.dumps({
        "correct_side": side, "incorrect_side": side, "pairs": 3,
        "pair_kinds": {"same_model": 3, "published": 0},
    }))  # fmt: skip
    training = trained(tmp_path / "training")
    assert paged(inference, pairs, training).splitlines() == [
        str(folder / "report.html") for folder in (inference, pairs, training)
    ]
    page = (pairs / "report.html").read_text()
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert data["pairs"][0]["chosen"] == [
        ["Image ", False], ["1", True], [" is a better", False], [" one", True],
    ]  # fmt: skip
    assert "no_partner" in page
    assert "data:image/png;base64," in (training / "report.html").read_text()
    assert "<svg" in (inference / "report.html").read_text()
    with pytest.raises(UserError, match=r"no inference .* merge .* training"):
        paged(media)
    with pytest.raises(UserError, match="--out is for the page of one folder"):
        paged(inference, pairs, "--out", tmp_path / "x")
