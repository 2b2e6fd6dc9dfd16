"""One pair, as the documents of LLaMA-Factory, TRL and ms-swift write it."""

from typing import Any

from helpers.merging import RIGHT, WRONG

QUESTION = "Judge: [a cat]"
PROMPT = f"<image><image>{QUESTION}"
IMAGES = ["a.png", "b.png"]
# The pair that each of FORMS is read as.
PAIR = {"problem": PROMPT, "chosen": RIGHT, "rejected": WRONG, "images": IMAGES}
PARTS = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": QUESTION}]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def alpaca(**changes: Any) -> dict[str, Any]:
    row = {"instruction": PROMPT, "chosen": RIGHT, "rejected": WRONG, "images": IMAGES}
    return row | changes


def sharegpt(**changes: Any) -> dict[str, Any]:
    answers = {"chosen": gpt(RIGHT), "rejected": gpt(WRONG)}
    return {"conversations": [human(PROMPT)], **answers, "images": IMAGES} | changes


def trl(**changes: Any) -> dict[str, Any]:
    answers = {"chosen": [assistant(RIGHT)], "rejected": [assistant(WRONG)]}
    return {"prompt": [user(PARTS)], **answers, "images": IMAGES} | changes


def trl_implicit(question: Any = PARTS, **changes: Any) -> dict[str, Any]:
    return {
        "chosen": [user(question), assistant(RIGHT)],
        "rejected": [user(question), assistant(WRONG)],
        "images": IMAGES,
    } | changes


def swift(**changes: Any) -> dict[str, Any]:
    messages = [user(PROMPT), assistant(RIGHT)]
    return {"messages": messages, "rejected_response": WRONG, "images": IMAGES} | changes


FORMS: dict[str, dict[str, Any]] = {
    "alpaca": alpaca(),
    "alpaca, all in input": alpaca(instruction="", input=PROMPT),
    "alpaca with empty columns": alpaca(input="", system="", history=[], tools=None),
    "sharegpt": sharegpt(),
    "sharegpt with OpenAI's tags": sharegpt(
        conversations=None, messages=[user(PROMPT)], chosen=assistant(RIGHT),
        rejected=assistant(WRONG),
    ),
    "trl": trl(),
    "trl, a text as content": trl(prompt=[user(QUESTION)]),
    "trl, as Arrow gives it": trl(prompt=[user([
        {"type": "image", "text": None}, {"type": "image", "text": None},
        {"type": "text", "text": QUESTION},
    ])]),
    "trl, placeholders in a text": trl(prompt=[user(PROMPT)]),
    "trl, answers in parts": trl(chosen=[assistant([{"type": "text", "text": RIGHT}])]),
    "trl, paths in the parts": trl(images=None, prompt=[user([
        {"type": "image", "image": "a.png"},
        {"type": "image_url", "image_url": {"url": "b.png"}},
        {"type": "text", "text": QUESTION},
    ])]),
    "trl, a prompt that is a text": trl(prompt=PROMPT, chosen=RIGHT, rejected=WRONG),
    "trl, implicit prompt": trl_implicit(),
    "trl, implicit prompt as a text": trl_implicit(QUESTION),
    "trl, as published with the prompt twice": trl_implicit(
        PROMPT, prompt=PROMPT, messages=[user(PROMPT), assistant(RIGHT)]
    ),
    "swift": swift(),
    "swift, a message": swift(rejected_response=[assistant(WRONG)]),
    "swift, images as dicts": swift(images=[{"bytes": None, "path": path} for path in IMAGES]),
    "swift, rejected_messages": swift(
        rejected_response=None, rejected_messages=[user(PROMPT), assistant(WRONG)],
        rejected_images=IMAGES,
    ),
    "swift, conversations": swift(messages=None, conversations=[human(PROMPT), gpt(RIGHT)]),
}  # fmt: skip
