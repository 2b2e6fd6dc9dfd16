"""A mock of an OpenAI-compatible server with faults on demand, in a process of its own:

    with MockServer() as server:
        fault = {"caption": "a cat", "kind": "status", "status": 500}
        server.configure(latency=0.1, faults=[fault])

Its answers depend on the caption and on seed + index alone, as the answers of a real server do.
"""

import asyncio
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from typing import Any

# Kinds of answers by seed: right or wrong, coherent or not, cut or malformed.
ANSWER_KINDS = ("one", "two", "one", "two", "contradicts", "no_totals", "unparsed", "length")


def completion(number: int, noun: str = "Image") -> tuple[str, str]:
    """Text and finish reason of the sample with this seed."""
    text, reason = _completion(number)
    return text.replace("Image", noun), reason


def _completion(number: int) -> tuple[str, str]:
    kind = ANSWER_KINDS[number % len(ANSWER_KINDS)]
    a, b = (9, 6) if kind in ("one", "contradicts") else (6, 9)
    answer = {"one": 1, "two": 2, "contradicts": 2, "no_totals": 1}.get(kind, 1)
    reasoning = f"Seen {number}. Style: Image 1 ({a}/10); Image 2 ({b}/10)\n"
    if kind != "no_totals":
        reasoning += f"Total: Image 1: {a}, Image 2: {b}"
    if kind == "length":
        return f"<think>{reasoning}", "length"
    if kind == "unparsed":
        return f"<think>{reasoning}</think>Image 1 is better", "stop"
    return f"<think>{reasoning}</think><answer>Image {answer} is better</answer>", "stop"


def of_form(regex: str, number: int, noun: str) -> tuple[str, str]:
    """As `completion`, of the first sample from this seed on that the form allows, or that is cut.

    Where the chat template has opened <think>, the text begins behind it.
    """
    while True:
        text, reason = completion(number, noun)
        for whole in (text, text.removeprefix("<think>")):
            if reason == "length" or re.fullmatch(regex, whole):
                return whole, reason
        # The next one may be a text that is cut.
        number += 2


def word_logprobs(text: str) -> dict[str, Any]:
    """Log-probs of words and signs: at a 1 or 2 the other one has a quarter of its chance."""
    return {"content": [
        {"token": word, "logprob": -0.3, "top_logprobs": [
            {"token": word, "logprob": -0.3},
            *([{"token": "2" if word == "1" else "1", "logprob": -0.3 - math.log(4)}]
              if word in ("1", "2") else []),
        ]}
        for word in re.findall(r"\s+|\w+|[^\w\s]", text)
    ]}  # fmt: skip


def seen_completion(images: list[str], prompt: str, noun: str, lean: int) -> str:
    """The text of a judge that prefers light pictures and long answers, whatever comes first.

    With `lean` it answers so always, against its own scores.
    """
    import base64
    import io

    from PIL import Image, ImageStat

    def light(url: str) -> float:
        picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        return ImageStat.Stat(picture.convert("L")).mean[0] / 25.5

    if noun == "Answer":
        values = [len(re.findall(rf"^Answer {n}: \[(.*)\]$", prompt, re.M)[0]) for n in (1, 2)]
    else:
        half = len(images) // 2 if noun == "Video" else 1
        shown = [light(url) for url in images[-2 * half :]]
        values = [sum(shown[:half]) / half, sum(shown[half:]) / half]
    a, b = (f"{value:.1f}" for value in values)
    answer = lean or (1 if values[0] > values[1] else 2)
    scores = f"1. Light: {noun} 1 ({a}/10) - so; {noun} 2 ({b}/10) - so\n"
    totals = f"Total score:\n{noun} 1: {a}\n{noun} 2: {b}\n"
    return f"<think>\n{scores}{totals}</think>\n<answer>{noun} {answer} is better</answer>"


class MockServer:
    """The server's process, with its configuration and its log of requests."""

    def __init__(self, port: int = 0, models: str = "mock") -> None:
        command = [sys.executable, __file__, str(port), models]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def _call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", data, 30) as answer:
            return json.load(answer)

    def configure(
        self,
        latency: float = 0.0,
        faults: list[dict[str, Any]] | None = None,
        slots: int = 0,
        max_requests: int = 0,
        models: list[str] | None = None,
        models_status: int = 200,
        probe: dict[str, Any] | None = None,
        root: str | None = None,
        sees: bool = False,
        lean: int = 0,
    ) -> None:
        """Empty the log, and answer so from now on.

        A fault: "kind" (status, cut, close, wrong_n, first_only, split, same_index, body,
        text, abort, hang, exit), "times" (without it: always), "caption" (without it: all), the
        content of the answer, and the "reason" why it ended.
        The server works on `slots` requests at a time (0: all), and other requests wait. It
        rejects requests beyond `max_requests` (0: none) with status 503. It lists `models`, with
        the status `models_status`, and with `root` as their folder. `probe` changes the answer to a
        text alone: "words" and "logprob", a "status" (so many "times"; without it: always), or
        "refuses" and "breaks", what it does not understand and says with status 400 and 500;
        with "structured": "ignores" it does not force forms, "reasoning": only behind reasoning,
        "opened": its chat template writes <think>, "silent": it does not tell its prompt.
        `sees`: its answers depend on what it is shown (`seen_completion`), not on the seed.
        """
        configuration = {
            "latency": latency, "faults": faults or [], "slots": slots,
            "max_requests": max_requests, "models_status": models_status,
            "probe": probe or {}, "root": root, "sees": sees, "lean": lean,
        }  # fmt: skip
        self._call("/configure", configuration | ({"models": models} if models else {}))

    def log(self) -> list[dict[str, Any]]:
        """Every request since `configure`: settings, caption, images (as sent), text and time."""
        found: list[dict[str, Any]] = self._call("/log")
        return found

    def wait_for(self, requests: int, seconds: float = 90) -> None:
        until = time.monotonic() + seconds
        while len(self.log()) < requests:
            assert time.monotonic() < until, f"{requests} requests did not come"
            time.sleep(0.02)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def freeze(self) -> None:
        """From now on connections are taken, and nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> "MockServer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


# The fixed text by which the client gets to know a server (`client.probe`).
PROBE = "Text Caption: [a red circle]. Describe both images"
# Slots of a server that works on all requests at once.
UNBOUNDED = 10**6


def _serve(port: int, models: list[str]) -> None:
    from aiohttp import web

    state: dict[str, Any] = {
        "latency": 0.0, "faults": [], "log": [], "reconfigured": asyncio.Event(),
        "slots": asyncio.Semaphore(UNBOUNDED), "max_requests": 0, "working": 0,
        "probe": {}, "root": None, "sees": False, "lean": 0,
    }  # fmt: skip

    async def configure(request: web.Request) -> web.Response:
        configuration = await request.json()
        configuration["slots"] = asyncio.Semaphore(configuration["slots"] or UNBOUNDED)
        state["reconfigured"].set()
        state.update({"models": models} | configuration, log=[], reconfigured=asyncio.Event())
        return web.json_response({})

    async def log(request: web.Request) -> web.Response:
        return web.json_response(state["log"])

    async def list_models(request: web.Request) -> web.Response:
        listed = state.get("models", models)
        root = {"root": state["root"]} if state["root"] else {}
        data = [{"id": model, "object": "model"} | root for model in listed]
        status = state.get("models_status", 200)
        return web.json_response({"object": "list", "data": data}, status=status)

    def fault_for(caption: str) -> dict[str, Any]:
        for fault in state["faults"]:
            if fault.get("caption", caption) == caption and fault.get("times", 1) > 0:
                if "times" in fault:
                    fault["times"] -= 1
                return dict(fault)
        return {}

    def probe_answer(body: dict[str, Any]) -> web.Response:
        """The greedy answer to a text alone: it tells the weights, and what is not understood."""
        asked = state["probe"]
        for kind, status in (("refuses", 400), ("breaks", 500)):
            for name in asked.get(kind, ()):
                if name in body or (name == "large seeds" and body["seed"] >= 2**31):
                    message = f"unknown or bad: {name}"
                    return web.json_response({"error": {"message": message}}, status=status)
        if "status" in asked and asked.get("times", 1) > 0:
            if "times" in asked:
                asked["times"] -= 1
            # Some proxies tell of an error under status 200.
            return web.json_response({"error": {"message": "no"}}, status=asked["status"])
        words = asked.get("words", ["Image", " 1"])
        mode = asked.get("structured", "")
        reasoning = {"reasoning": "Image 1"} if mode == "reasoning" else {}
        if "structured_outputs" in body and mode not in ("ignores", "reasoning"):
            # Of a form of one text alone; the others are asked for one token.
            words = [body["structured_outputs"]["regex"][:7]]
        choice: dict[str, Any] = {
            "index": 0, "finish_reason": "length",
            "message": {
                "role": "assistant", "content": None if reasoning else "".join(words), **reasoning,
            },
        }  # fmt: skip
        if body.get("logprobs"):
            logprob = asked.get("logprob", -0.5)
            others = [{"token": "x", "logprob": logprob - 1.5}]
            choice["logprobs"] = {"content": [
                {"token": word, "logprob": logprob, "top_logprobs": others} for word in words
            ]}  # fmt: skip
        answer = {"choices": [choice], "model": body["model"]}
        if body.get("return_prompt_text") and mode != "silent":
            answer["prompt_text"] = "<|im_start|>assistant\n" + "<think>\n" * (mode == "opened")
        return web.json_response(answer)

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        (message,) = body["messages"]
        images = [part for part in message["content"] if part["type"] == "image_url"]
        prompt = message["content"][-1]["text"]
        caption = prompt.rpartition("[")[2].rstrip("]")
        settings = {key: body[key] for key in body if key != "messages"}
        urls = [image["image_url"]["url"] for image in images]
        entry = settings | {"caption": caption, "images": urls, "text": prompt}
        if prompt.startswith(PROBE):
            return probe_answer(body)
        state["log"].append(entry | {"when": time.time()})
        if state["max_requests"] and state["working"] >= state["max_requests"]:
            return web.json_response({"error": {"message": "the queue is full"}}, status=503)
        state["working"] += 1
        async with state["slots"]:
            await asyncio.sleep(state["latency"])
        state["working"] -= 1
        fault = fault_for(caption)
        kind = fault.get("kind")
        if kind == "exit":
            os._exit(1)
        if kind == "hang":
            # Until the next configuration, and without an answer even then.
            await state["reconfigured"].wait()
            if request.transport is not None:
                request.transport.close()
            return web.Response()
        if kind == "status":
            headers = {"Retry-After": fault["retry_after"]} if "retry_after" in fault else {}
            error = {"error": {"message": fault.get("message", "a fault on demand")}}
            return web.json_response(error, status=fault["status"], headers=headers)
        if kind == "body":
            return web.Response(
                text=fault["body"], content_type=fault.get("type", "application/json")
            )
        asked = re.search(r"exactly '(\w+) 1 is better'", prompt)
        noun = asked[1] if asked else "Image"
        count = 1 if kind == "first_only" else body["n"] - (kind == "wrong_n")
        choices = []
        for index in range(count):
            regex = (body.get("structured_outputs") or {}).get("regex")
            sample = body["seed"] + index
            text, reason = of_form(regex, sample, noun) if regex else completion(sample, noun)
            if state["sees"]:
                text, reason = seen_completion(urls, prompt, noun, state["lean"]), "stop"
            logprobs = {"logprobs": word_logprobs(text)} if body.get("logprobs") else {}
            choices.append({
                **logprobs,
                "index": 0 if kind == "same_index" else index,
                "finish_reason": "abort" if kind == "abort" else fault.get("reason", reason),
                "message": {
                    "role": "assistant", "content": fault.get("content", fault.get("text", text)),
                    **({"reasoning": fault["reasoning"]} if kind == "split" else {}),
                },
            })  # fmt: skip
        usage = {"prompt_tokens": 100, "completion_tokens": 50 * count, "total_tokens": 0}
        answer = {
            "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": choices[::-1], "usage": usage,
        }  # fmt: skip
        if kind in ("cut", "close"):
            half = json.dumps(answer).encode()[:100]
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            # "cut": shorter than its declared length. "close": no length is declared.
            response.content_length = 5000 if kind == "cut" else None
            if kind == "close":
                response.force_close()
            await response.prepare(request)
            await response.write(half)
            assert request.transport is not None
            if kind == "cut":
                request.transport.close()
            return response
        return web.json_response(answer)

    async def main() -> None:
        app = web.Application(client_max_size=2**30)
        app.add_routes([
            web.post("/configure", configure), web.get("/log", log),
            web.get("/v1/models", list_models), web.post("/v1/chat/completions", chat),
        ])  # fmt: skip
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2].split(","))
