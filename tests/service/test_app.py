"""The service as callers see it: a real one, before a mock of the server behind."""

import json
import signal
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.pictures import as_bytes
from helpers.server import MockServer
from helpers.service import Service, asked, data_url, head, in_base64, png
from PIL import Image

TEXT = (
    "<think>Style: Image 1 (9/10); Image 2 (6/10)\nTotal: Image 1: 9, Image 2: 6</think>"
    "<answer>Image 1 is better</answer>"
)
FIRST = {"kind": "text", "text": TEXT, "reason": "stop"}
KEY = "a-key-that-nobody-guesses"


@pytest.fixture(scope="module")
def behind():
    with MockServer() as running:
        yield running


@pytest.fixture(scope="module")
def shared(behind):
    """A service for the tests that need no flags of their own."""
    with Service(behind.url, "--orders", "given", "--max-body-bytes", 200_000) as running:
        yield running


@pytest.fixture(scope="module")
def one_at_a_time(behind):
    """One request is worked on, one waits, and a fault is not tried again."""
    flags = ("--max-working", 1, "--max-queued", 1, "--concurrency", 1, "--max-attempts", 1)
    with Service(behind.url, "--orders", "given", *flags) as running:
        yield running


@pytest.fixture
def service(behind, shared):
    behind.configure(faults=[FIRST])
    return shared


@pytest.fixture
def narrow(behind, one_at_a_time):
    behind.configure(faults=[FIRST])
    return one_at_a_time


def test_compare_answers_with_scores_and_texts(service):
    answer = service.post("/compare", asked())
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    found = answer.json
    assert (found["answer"], found["probability"], found["confidence"]) == (1, 1.0, 1.0)
    assert found["totals"] == [9.0, 6.0]
    assert [vote["text"] for vote in found["votes"]] == [TEXT]
    assert found["completion_tokens"] == 50


def test_texts_stay_out_when_they_are_not_wanted(service):
    found = service.post("/compare", asked(texts=False)).json
    assert found["answer"] == 1
    assert TEXT not in json.dumps(found)


def test_base64_is_as_good_as_a_data_url(behind, service):
    given = [png(2), png(3)]
    for form in (data_url, in_base64):
        assert service.post("/compare", asked("a cat", *map(form, given))).status == 200
    first, second = (request["images"] for request in behind.log())
    assert first == second == [data_url(data) for data in given]


def test_rank_orders_all_candidates(service):
    answer = service.post("/rank", asked("a cat", *(data_url(png(seed)) for seed in range(4))))
    assert answer.status == 200
    found = answer.json
    assert sorted(found["order"]) == [0, 1, 2, 3]
    assert found["best"] == found["order"][0]
    assert len(found["comparisons"]) == 6
    assert len(found["strengths"]) == len(found["win_rates"]) == 4
    assert TEXT not in answer.body.decode()


def test_rank_compares_no_more_than_it_is_told(behind, service):
    pictures = [data_url(png(seed)) for seed in range(5)]
    found = service.post("/rank", asked("a cat", *pictures, max_comparisons=4)).json
    assert len(found["comparisons"]) == len(behind.log()) == 4
    too_few = service.post("/rank", asked("a cat", *pictures, max_comparisons=2))
    assert too_few.error == (422, "bad_request")


def test_a_ranking_without_a_judgement_is_an_error(behind, service):
    behind.configure(faults=[{"kind": "text", "text": "nothing", "reason": "stop"}])
    assert service.post("/rank", asked()).error == (502, "unparsed")


def broken_png() -> bytes:
    return png(4)[:-200]


def bomb() -> bytes:
    """A PNG of a few bytes that claims 30,000 x 30,000 pixels."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    body = b"".join(
        struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
        for data in (chunk, b"IDAT" + zlib.compress(bytes(90_001)), b"IEND")
    )
    return b"\x89PNG\r\n\x1a\n" + body


def wide() -> bytes:
    """More pixels than a service takes by default, in a small file."""
    return as_bytes(Image.new("1", (5000, 4000)), "PNG")


def many_scans() -> bytes:
    """A progressive JPEG whose last scan comes two hundred times, each of which is decoded."""
    data = as_bytes(Image.new("L", (64, 64), 128), "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[last:end] * 200 + data[end:]


@pytest.mark.parametrize("page", ["/compare", "/rank"])
@pytest.mark.parametrize(
    ("picture", "kind"),
    [
        ("http://127.0.0.1:9/a.png", "not_a_picture"),
        ("https://example.com/a", "not_a_picture"),
        ("file:///etc/passwd", "not_a_picture"),
        ("data:text/html;base64,AAAA", "not_a_picture"),
        ("../../etc/passwd", "not_a_picture"),
        ("images/a.png", "not_a_picture"),
        ("/etc/passwd", "bad_base64"),
        ("not base64", "bad_base64"),
        ("\u00e4" * 8, "bad_base64"),
        ("", "empty"),
        (in_base64(b"no picture at all"), "not_an_image"),
        (in_base64(broken_png()), "corrupt"),
        (in_base64(bomb()), "too_large"),
        (in_base64(wide()), "too_large"),
        (in_base64(many_scans()), "corrupt"),
        # These can claim to be small, and decode to gigabytes.
        (in_base64(as_bytes(Image.new("L", (32, 32)), "TIFF")), "not_an_image"),
        (in_base64(as_bytes(Image.new("L", (32, 32)), "AVIF")), "not_an_image"),
    ],
)
def test_a_bad_picture_is_refused_with_a_sentence(behind, service, page, picture, kind):
    answer = service.post(page, asked("a cat", data_url(png()), picture))
    assert answer.error == (422, kind)
    assert "/etc/passwd" not in answer.json["error"]["message"]
    assert "candidate" in answer.json["error"]["message"]
    assert service.post(page, asked()).status == 200
    # The bad one was never sent on.
    assert len(behind.log()) == 1


def test_a_progressive_jpeg_is_a_picture(service):
    jpegs = [
        in_base64(as_bytes(Image.new("RGB", (64, 64), colour), "JPEG", progressive=True))
        for colour in ("red", "blue")
    ]
    assert service.post("/compare", asked("a cat", *jpegs)).status == 200


def test_a_text_is_in_every_comparison_and_bounded(service):
    assert service.post("/rank", asked("a" * 2**15)).status == 200
    assert service.post("/rank", asked("a" * (2**15 + 1))).error == (422, "too_large")


def test_pictures_and_candidates_are_bounded(service):
    small = data_url(png(0, 8))
    assert service.post("/rank", asked("a cat", *[small] * 33)).error == (422, "too_many")
    frames = asked("a cat", [small] * 40, [small] * 40)
    assert service.post("/compare", frames).error == (422, "too_many")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", (400, "bad_json")),
        (b"{", (400, "bad_json")),
        (b"\xff", (400, "bad_json")),
        (b"[1]", (400, "bad_json")),
        (b'{"prompt": "x"}', (422, "bad_request")),
        (asked(candidates=["x"]), (422, "bad_request")),
        (asked(prompt=7), (422, "bad_request")),
        (asked(prompt=" "), (422, "bad_text")),
        (asked("<image>"), (422, "bad_text")),
        (asked("a", data_url(png()), data_url(png())), (422, "same_candidates")),
        (asked(context=[data_url(png(9))]), (422, "bad_media")),
        (b"[" * 100_000, (400, "bad_json")),
        (asked(candidates=list(range(20_000))), (422, "bad_request")),
        (asked(**{f"field{n}": n for n in range(200)}), (422, "too_many")),
    ],
)
def test_a_bad_body_is_refused_with_a_sentence(service, body, error):
    assert service.post("/compare", body).error == error


def test_an_unknown_field_names_the_nearest(service):
    answer = service.post("/compare", asked(contxt=[]))
    assert answer.error == (422, "bad_request")
    assert "Did you mean 'context'?" in answer.json["error"]["message"]


def test_a_page_in_a_browser_cannot_ask(service):
    body = json.dumps(asked()).encode()
    answer = service.call("/compare", body, {"Content-Type": "text/plain"})
    assert answer.error == (415, "not_json")
    refused = service.get("/compare")
    assert (refused.error, refused.headers["Allow"]) == ((405, "no_such_page"), "POST")
    # No redirect, which would name the host that the caller claims.
    assert service.post("/compare/", asked()).error == (404, "no_such_page")
    assert service.get("/docs").error == (404, "no_such_page")


def test_a_text_of_the_model_is_data(behind, service):
    text = "<script>alert(1)</script>"
    behind.configure(faults=[{"kind": "text", "text": text}])
    answer = service.post("/compare", asked())
    assert answer.error == (502, "unparsed")
    assert answer.json["error"]["texts"] == [text]
    assert answer.headers["Content-Type"] == "application/json"
    # Also of failures, texts are sent to who wants them.
    assert text not in service.post("/compare", asked(texts=False)).body.decode()


def test_a_ranking_holds_no_texts_unless_they_are_wanted(behind, service):
    # Two of three comparisons fail, so that one candidate has no strength.
    unreadable = {"kind": "text", "text": "nothing to read", "times": 2}
    pictures = [data_url(png(seed)) for seed in range(3)]
    for texts in (False, True):
        behind.configure(faults=[dict(unreadable), FIRST])
        found = service.post("/rank", asked("a cat", *pictures, texts=texts))
        assert len(found.json["failures"]) == 1
        assert ("nothing to read" in found.body.decode()) == texts


# --- limits -------------------------------------------------------------------------------------


def status_of(connection: socket.socket) -> int:
    """The status of the next answer; it is read to its end."""
    from http.client import HTTPResponse

    response = HTTPResponse(connection)
    response.begin()
    json.loads(response.read())
    return response.status


def test_a_body_that_is_too_large_is_refused_while_it_is_read(service):
    with service.connection() as connection:
        connection.sendall(head(10**12) + b"{")
        assert status_of(connection) == 413
    with service.connection() as connection:
        # No byte is read when the caller waits for a word.
        connection.sendall(head(10**12, Expect="100-continue"))
        assert status_of(connection) == 413
    with service.connection() as connection:
        connection.sendall(head(None))
        chunk = b"%x\r\n%s\r\n" % (10_000, b" " * 10_000)
        for _ in range(21):
            connection.sendall(chunk)
        # The end never comes.
        assert status_of(connection) == 413
    service.wait_for("cot_reward_queued", 0)


def test_a_slow_body_ends_with_its_time(service):
    with service.connection() as connection:
        connection.sendall(head(100, X_Time_Limit=0.3) + b"{")
        assert status_of(connection) == 408
    service.wait_for("cot_reward_queued", 0)


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf", "601", "soon"])
def test_a_time_limit_is_a_number_within_the_bound(service, limit):
    assert service.post("/compare", asked(), x_time_limit=limit).error == (400, "bad_time_limit")


def test_what_takes_too_long_is_given_up_and_leaves_its_slot(behind, narrow):
    behind.configure(faults=[{"caption": "late", "kind": "hang"}, FIRST])
    before = narrow.metric("cot_reward_requests_total", outcome="time_limit")
    late = narrow.post("/compare", asked("late"), x_time_limit=1)
    assert late.error == (504, "time_limit")
    assert narrow.post("/compare", asked()).status == 200
    assert narrow.metric("cot_reward_requests_total", outcome="time_limit") == before + 1
    assert narrow.metric("cot_reward_in_flight") == 0


def test_who_goes_leaves_the_slot(behind, narrow):
    behind.configure(faults=[{"caption": "gone", "kind": "hang"}, FIRST])
    body = json.dumps(asked("gone")).encode()
    with narrow.connection() as connection:
        connection.sendall(head(len(body)) + body)
        behind.wait_for(1)
    assert narrow.post("/compare", asked()).status == 200
    narrow.wait_for("cot_reward_requests_total", 1, outcome="client_closed")
    assert narrow.metric("cot_reward_in_flight") == 0


def test_a_full_queue_turns_away(behind, narrow):
    # Where the server behind hangs until it is configured anew.
    behind.configure(faults=[{"caption": "first", "kind": "hang"}, FIRST])
    with ThreadPoolExecutor() as threads:
        first = threads.submit(narrow.post, "/compare", asked("first"))
        behind.wait_for(1)
        second = threads.submit(narrow.post, "/compare", asked("second"))
        narrow.wait_for("cot_reward_queued", 1)
        third = narrow.post("/compare", asked("third"))
        assert third.error == (503, "queue_full")
        assert int(third.headers["Retry-After"]) >= 1
        behind.configure(faults=[FIRST])
        assert first.result().error == (502, "attempts_used_up")
        assert second.result().status == 200


def test_many_callers_all_get_an_answer_and_a_picture_is_encoded_once(behind, service):
    behind.configure(latency=0.02, faults=[FIRST])
    before = service.metric("cot_reward_encoded_pictures")
    pictures = [data_url(png(seed)) for seed in (100, 101)]
    with ThreadPoolExecutor(32) as threads:
        found = list(
            threads.map(
                lambda n: service.post("/compare", asked(f"caption {n}", *pictures)), range(200)
            )
        )
    assert {answer.status for answer in found} == {200}
    assert {tuple(request["images"]) for request in behind.log()} == {tuple(pictures)}
    assert service.metric("cot_reward_encoded_pictures") == before + 2


# --- the key --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_key_is_asked_and_never_written(behind):
    behind.configure(faults=[FIRST])
    env = {"COT_REWARD_SERVICE_KEY": KEY}
    with Service(behind.url, "--orders", "given", env=env) as service:
        for given in ({}, {"authorization": "Bearer x"}, {"authorization": f"Basic {KEY}"}):
            assert service.post("/compare", asked(), **given).error == (401, "no_key")
        assert service.get("/metrics").error == (401, "no_key")
        assert service.get("/health").status == service.get("/ready").status == 200
        given = {"Authorization": f"Bearer {KEY}"}
        assert service.post("/compare", asked(), **given).status == 200
        metrics = service.call("/metrics", None, given).body.decode()
        service.stop()
        assert KEY not in service.log + metrics


# --- the server behind ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_service_may_start_before_its_server_and_outlive_it():
    with MockServer() as first:
        port, url = first.port, first.url
    with Service(url, "--orders", "given") as service:
        assert service.get("/ready").error == (503, "not_ready")
        assert service.post("/compare", asked()).error == (503, "server_unusable")
        with MockServer(port) as behind:
            behind.configure(faults=[FIRST])
            assert service.post("/compare", asked()).status == 200
            wait_until(lambda: service.get("/ready").status == 200)
        wait_until(lambda: service.get("/ready").status == 503)
        assert service.get("/health").status == 200
        out = service.post("/compare", asked(), x_time_limit=1)
        assert out.error == (504, "time_limit")
        with MockServer(port) as behind:
            behind.configure(faults=[FIRST])
            assert service.post("/compare", asked()).status == 200


@pytest.mark.slow
def test_a_server_with_another_model_is_not_ready():
    with MockServer() as behind, Service(behind.url, "--orders", "given") as service:
        behind.configure(faults=[FIRST])
        assert service.post("/compare", asked()).status == 200
        behind.configure(models=["next"], faults=[{"kind": "status", "status": 404}])
        assert service.post("/compare", asked(), x_time_limit=1).error == (504, "time_limit")
        wait_until(lambda: service.get("/ready").status == 503)


def wait_until(is_so):
    until = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"kind": "status", "status": 500}, (502, "attempts_used_up")),
        ({"kind": "status", "status": 400, "message": "too long"}, (422, "refused")),
        ({"kind": "status", "status": 403, "message": "no access"}, (502, "refused")),
        ({"kind": "cut"}, (502, "attempts_used_up")),
        ({"kind": "text", "text": TEXT, "reason": "length"}, (502, "truncated")),
    ],
)
def test_a_fault_behind_is_an_error_with_a_sentence(behind, narrow, fault, error):
    behind.configure(faults=[{"caption": "ill"} | fault, FIRST])
    assert narrow.post("/compare", asked("well")).status == 200
    assert narrow.post("/compare", asked("ill")).error == error
    assert narrow.post("/compare", asked("well")).status == 200


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stopped_service_finishes_what_is_in_flight(behind):
    with Service(behind.url, "--orders", "given") as service, ThreadPoolExecutor() as threads:
        behind.configure(latency=1.5, faults=[FIRST])
        found = threads.submit(service.post, "/compare", asked())
        behind.wait_for(1)
        service.stop()
        assert found.result().status == 200
        assert "Traceback" not in service.log


@pytest.mark.slow
def test_the_end_has_an_end(behind):
    with Service(behind.url, "--grace", 0.5) as service, ThreadPoolExecutor() as threads:
        behind.configure(faults=[{"kind": "hang"}])
        found = threads.submit(service.post, "/compare", asked())
        behind.wait_for(1)
        service.stop()
        assert found.result().error == (503, "shutting_down")
        assert "Traceback" not in service.log


@pytest.mark.slow
def test_a_body_that_is_being_sent_has_no_more_time_than_the_grace(behind):
    with Service(behind.url, "--grace", 0.5) as service, service.connection() as connection:
        connection.sendall(head(100) + b"{")
        service.wait_for("cot_reward_queued", 1)
        service.process.send_signal(signal.SIGTERM)
        assert status_of(connection) == 503
        service.wait()
        assert "Traceback" not in service.log
