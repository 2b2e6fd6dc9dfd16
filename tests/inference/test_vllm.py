"""Inference with a real vLLM: media by address, seeds, and a server that is killed."""

import time
from types import SimpleNamespace

import pytest
from cot_reward.errors import UserError
from helpers.client_world import World, unit
from helpers.models import save_untrained_base
from helpers.pictures import picture
from helpers.rows import raw_row
from helpers.serving import RealServer, needs_vllm

pytestmark = [pytest.mark.slow, needs_vllm]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    model = save_untrained_base(folder / "model")
    # As published models have it: vLLM would fill what a request leaves out.
    (model / "generation_config.json").write_text('{"top_k": 1, "repetition_penalty": 1.3}')
    world_server = RealServer(model, folder / "media")
    world = World(folder, world_server, count=40)
    for number in range(40):
        for shade, name in enumerate(world.rows[number]["images"]):
            picture(world.media / "images" / name, (6 * number, 80 * shade, 90), size=56)
    # One above the bound, which travels as a file of the cache.
    picture(world.media / "images/large.png", size=200)
    world.rows[0] = raw_row("a large one", ["large.png", "0b.png"])
    # An untrained model gives no answer.
    world.base += ["--max-tokens", 16, "--image-max-pixels", 3136, "--min-parsed", 0]
    world_server.start()
    yield SimpleNamespace(server=world_server, world=world, folder=folder, model=model)
    world_server.stop()


def texts(world: World) -> dict:
    return {unit(row): row["conversations"][1]["value"] for row in world.judged}


def test_media_by_address_and_in_the_request_give_the_same_texts(real):
    world = real.world
    asked = ["--num-samples", 2, "--limit", 10]
    world.out = real.folder / "inline"
    assert world.call(*asked, "--out", world.out) == 0
    inline = texts(world)
    world.out = real.folder / "file"
    assert world.call(*asked, "--out", world.out, "--media", "file") == 0
    assert texts(world).keys() == inline.keys()
    # Batches differ from run to run, and with them the last bits of a logit.
    same = sum(text == inline[unit] for unit, text in texts(world).items())
    assert same >= 0.9 * len(inline) == 36
    assert world.summary["prompt_tokens"] > 0
    # Random weights may end a text at any token.
    assert 0 < world.summary["completion_tokens"] <= 40 * 16


def test_a_folder_that_the_server_may_not_read_is_explained(real, tmp_path):
    world = World(tmp_path, real.server)
    with pytest.raises(UserError, match="--media file: the server does not read") as error:
        world.call("--media", "file", "--max-tokens", 16)
    assert "HTTP 400" in str(error.value)
    assert f"--allowed-local-media-path {world.media}" in str(error.value)


def test_a_server_that_is_killed_and_started_again_costs_nothing(real):
    world = real.world
    world.out = real.folder / "killed"
    running = world.start(
        "--out", world.out, "--num-samples", 4, "--max-attempts", 1, "--concurrency", 4
    )
    journal = world.out / "journal.jsonl"
    until = time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size):
        assert time.monotonic() < until
        time.sleep(0.05)
    real.server.stop()
    real.server.start()
    output, _ = running.communicate(timeout=300)
    assert running.returncode == 0, output
    assert "the server is out" in output
    assert world.summary["account"] == {
        "expected": 320, "judged": 320, "failed": 0, "not_asked": 0,
    }  # fmt: skip
    assert len(texts(world)) == 320


def test_the_served_generation_config_does_not_sample(real, capfd):
    world = real.world
    repeated = {}
    for who in ("neutral", "server"):
        world.out = real.folder / who
        flags = ["--num-samples", 4, "--limit", 4, "--sampling-defaults", who]
        assert world.call("--out", world.out, *flags) == 0
        repeated[who] = world.summary["repeated"]
    assert repeated["neutral"]["count"] == 0
    # With top_k 1 every sample is the greedy text.
    assert repeated["server"]["count"] == repeated["server"]["of"] == 4 * 2 * 3
    told = capfd.readouterr().err
    assert told.count("further samples of a comparison are the text of an earlier one") == 1


@pytest.mark.parametrize("form", ["answer", "json", "think"])
def test_a_forced_form_is_on_every_text_even_of_an_untrained_model(real, form):
    world = real.world
    world.out = real.folder / f"forced-{form}"
    flags = ["--form", form, "--num-samples", 4, "--limit", 4, "--max-tokens", 64]
    assert world.call("--out", world.out, *flags, "--structured-output", "on") == 0
    assert len(world.judged) == 32
    # Random weights may go on with white space or reasons until they are cut.
    assert all(row["answer"] or row["finish_reason"] == "length" for row in world.judged)
    begins = {"answer": "Image", "json": "{", "think": "<think>"}[form]
    whole = [text.strip() for text in texts(world).values() if text.strip()]
    assert all(text.startswith((begins, "```")) or begins.startswith(text) for text in whole)
    assert any(row["answer"] for row in world.judged) or form != "answer"


def test_other_weights_under_the_same_name_are_seen(real):
    """Last: the server has other weights afterwards."""
    world = real.world
    world.out = real.folder / "weights"
    flags = ["--out", world.out, "--limit", 2, "--num-samples"]
    assert world.call(*flags, 1) == 0
    real.server.stop()
    real.server.start()
    # A restart alone changes nothing.
    assert world.call(*flags, 2) == 0
    real.server.stop()
    save_untrained_base(real.model, seed=1)
    real.server.start()
    with pytest.raises(UserError, match=f"the files in {real.model} are others"):
        world.call(*flags, 3)
