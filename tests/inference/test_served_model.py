"""A folder of responses is bound to weights and prompt, and servers may be of any make."""

import pytest
from cot_reward.client import probe
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


@pytest.fixture
def no_waits(monkeypatch):
    monkeypatch.setattr(probe, "WAIT_SECONDS", 0.01)


REFUSES_ALL = {"refuses": ["seed"]}


@pytest.mark.parametrize(
    "told",
    [{"logprob": -0.53}, {"refuses": ["logprobs"]}, {"breaks": ["logprobs"]}, REFUSES_ALL],
)
def test_rounding_and_a_server_that_cannot_tell_are_accepted(asked, server, no_waits, told):
    server.configure(probe=told)
    assert asked.call("--num-samples", 1) == 0
    # Whoever tells less does not loosen what binds the folder.
    server.configure(probe={"logprob": -1.7})
    with pytest.raises(UserError, match="responses of other weights under the same name"):
        asked.call("--num-samples", 2)


@pytest.mark.parametrize("status", [200, 404, 429, 500, 503])
def test_a_server_that_does_not_answer_the_first_question_is_not_asked(
    asked, server, no_waits, status
):
    kept = (asked.out / "settings.json").read_bytes()
    server.configure(probe={"status": status, "logprob": -1.7})
    with pytest.raises(UserError, match=r"did not answer the first question .* run the same comm"):
        asked.call("--num-samples", 2)
    assert (asked.out / "settings.json").read_bytes() == kept
    # A fault that passes hides no other weights, and costs nothing where there are none.
    server.configure(probe={"status": status, "times": 2, "logprob": -1.7})
    with pytest.raises(UserError, match="responses of other weights under the same name"):
        asked.call("--num-samples", 2)
    assert server.log() == []
    server.configure(probe={"status": status, "times": 2})
    assert asked.call("--num-samples", 2) == 0


def test_a_fault_that_passes_makes_no_seeds_small(world, server, no_waits):
    """It may be met behind what the server refuses."""
    server.configure(probe={"breaks": ["logprobs"], "status": 500, "times": 1})
    assert world.call("--num-samples", 1) == 0
    assert max(entry["seed"] for entry in server.log()) >= 2**31


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
