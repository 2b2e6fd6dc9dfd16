"""A folder of responses is bound to weights and prompt, and servers may be of any make."""

import pytest
from cot_reward.errors import UserError
from helpers.client_world import unit


@pytest.fixture
def asked(world, server):
    """A finished run with one sample each; then the log is empty."""
    assert world.call("--num-samples", 1) == 0
    server.configure()
    return world


def test_other_weights_under_the_same_name_are_refused(asked, server):
    assert asked.call("--num-samples", 2) == 0
    server.configure(probe={"logprob": -1.7})
    with pytest.raises(UserError, match="responses of other weights under the same name"):
        asked.call("--num-samples", 3)
    server.configure(probe={"words": ["Nothing", " of", " it"]})
    with pytest.raises(UserError, match="goes on with 'Image' there, with 'Nothing' now"):
        asked.call("--num-samples", 3)
    assert server.log() == []
    assert asked.call("--num-samples", 3, "--any-weights") == 0
    assert len(server.log()) == 6


def test_rounding_and_a_server_that_tells_nothing_are_accepted(asked, server):
    for probe in ({"logprob": -0.53}, {"status": 500}, {"refuses": ["logprobs"]}):
        server.configure(probe=probe)
        assert asked.call("--num-samples", 1) == 0


def test_other_files_in_the_served_folder_are_refused(world, server, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"one")
    server.configure(root=str(folder))
    assert world.call("--num-samples", 1) == 0
    assert world.call("--num-samples", 1) == 0
    # Of the same size, so that only its content tells.
    (folder / "model.safetensors").write_bytes(b"two")
    with pytest.raises(UserError, match=f"the files in {folder} are others"):
        world.call("--num-samples", 1)


def test_a_model_of_another_prompt_is_refused(world, server, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "template.txt").write_text("<image><image>Which? Text Caption: [{caption}]\n")
    server.configure(root=str(folder))
    with pytest.raises(UserError, match="was trained on another prompt") as error:
        world.call("--num-samples", 1)
    assert f"--template {folder / 'template.txt'}" in str(error.value)
    assert world.call("--num-samples", 1, "--template", folder / "template.txt") == 0


def test_neutral_sampling_is_sent_unless_the_server_should_decide(world, server):
    assert world.call("--num-samples", 1) == 0
    assert {(entry["top_k"], entry["repetition_penalty"]) for entry in server.log()} == {(-1, 1.0)}
    server.configure()
    kwargs = '{"enable_thinking": false}'
    flags = ["--sampling-defaults", "server", "--chat-template-kwargs", kwargs]
    world.out = world.out.with_name("by_server")
    assert world.call("--num-samples", 1, "--out", world.out, *flags) == 0
    for entry in server.log():
        assert "top_k" not in entry
        assert entry["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_server_without_neutral_sampling_is_refused(world, server):
    server.configure(probe={"refuses": ["top_k"]})
    with pytest.raises(UserError, match="--sampling-defaults server accepts them"):
        world.call("--num-samples", 1)
    assert world.call("--num-samples", 1, "--sampling-defaults", "server") == 0


def test_a_server_of_small_seeds_gets_small_seeds(world, server):
    server.configure(probe={"refuses": ["large seeds", "logprobs"]})
    assert world.call("--num-samples", 2) == 0
    seeds = {entry["seed"] for entry in server.log()}
    assert len(seeds) == 6
    assert max(seeds) < 2**31


def test_a_server_that_ignores_n_is_asked_for_one_at_a_time(world, server):
    server.configure()
    assert world.call("--num-samples", 4) == 0
    wanted = {unit(row): row["conversations"][1]["value"] for row in world.judged}
    # Of four samples it gives one.
    server.configure(faults=[{"kind": "first_only"}])
    world.out = world.out.with_name("single")
    assert world.call("--num-samples", 4, "--out", world.out) == 0
    assert {unit(row): row["conversations"][1]["value"] for row in world.judged} == wanted
    assert world.summary["one_response_a_request"]
    assert world.summary["account"]["judged"] == 24


@pytest.mark.parametrize("flag", ["[1]", "{", "7"])
def test_template_arguments_are_an_object(world, flag):
    with pytest.raises(UserError, match=r"--chat-template-kwargs .*: not a JSON object"):
        world.call("--chat-template-kwargs", flag)
