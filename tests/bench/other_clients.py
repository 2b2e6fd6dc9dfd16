"""Other clients for the same work, which tests/bench/client.py compares with ours:

    PYTHON tests/bench/other_clients.py streaming DATA IMAGES TEMPLATE BASE_URL OUT

Each is as short as scripts that people publish: it reads two files per item, sends them as data
URLs and appends the answer to a file. Nothing is checked, judged or continued.
"""

import asyncio
import base64
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MODEL = "mock"
# 2048 tokens at temperature 1, as ours asks for.
SAMPLING: dict[str, Any] = {"temperature": 1.0, "max_tokens": 2048}


def parts(row: dict[str, Any], images: Path, template: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in row["images"]:
        data = base64.b64encode((images / name).read_bytes()).decode()
        kind = "png" if name.endswith("png") else "jpeg"
        url = {"url": f"data:image/{kind};base64,{data}"}
        found.append({"type": "image_url", "image_url": url})
    found.append({"type": "text", "text": template.replace("{caption}", row["prompt"])})
    return found


async def sdk(
    rows: list[dict[str, Any]],
    images: Path,
    template: str,
    base_url: str,
    out: Path,
    stream: bool,
    workers: int,
    aiohttp: bool,
) -> None:
    """`workers` tasks; each asks for one item at a time."""
    from openai import AsyncOpenAI, DefaultAioHttpClient

    transport = DefaultAioHttpClient() if aiohttp else None
    client = AsyncOpenAI(base_url=base_url, api_key="none", http_client=transport)
    todo = iter(rows)

    async def work() -> None:
        for row in todo:
            content: Any = parts(row, images, template)
            messages: Any = [{"role": "user", "content": content}]
            if stream:
                text = ""
                async for chunk in await client.chat.completions.create(
                    model=MODEL, messages=messages, stream=True, **SAMPLING
                ):
                    if chunk.choices and chunk.choices[0].delta.content:
                        text += chunk.choices[0].delta.content
            else:
                answer = await client.chat.completions.create(
                    model=MODEL, messages=messages, **SAMPLING
                )
                text = answer.choices[0].message.content or ""
            with out.open("a") as file:
                file.write(json.dumps({"prompt": row["prompt"], "text": text}) + "\n")

    await asyncio.gather(*(work() for _ in range(workers)))
    await client.close()


def curator(
    rows: list[dict[str, Any]], images: Path, template: str, base_url: str, out: Path, workers: int
) -> None:
    """bespokelabs-curator, its rate limits out of the way."""
    # It keeps caches below the home folder, would ask the net for prices and a tokenizer (its own
    # dependency litellm holds the same file), and send telemetry.
    litellm = find_spec("litellm")
    tokenizers = Path((litellm and litellm.origin) or "").parent / "litellm_core_utils/tokenizers"
    os.environ |= {
        "TIKTOKEN_CACHE_DIR": str(tokenizers),
        "HOME": str(out.parent), "TELEMETRY_ENABLED": "false", "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "true", "OPENAI_API_KEY": "none",
    }  # fmt: skip
    from bespokelabs import curator as library

    class Judge(library.LLM):
        def prompt(self, row: dict[str, Any]) -> Any:
            first, second = (library.types.Image(url=str(images / name)) for name in row["images"])
            return template.replace("{caption}", row["prompt"]), first, second

        def parse(self, row: dict[str, Any], response: str) -> dict[str, Any]:
            return {"prompt": row["prompt"], "text": response}

    judge = Judge(
        model_name=MODEL,
        backend="openai",
        generation_params=dict(SAMPLING),
        backend_params={
            "base_url": base_url,
            "max_requests_per_minute": 10**9,
            "max_tokens_per_minute": 10**12,
            "max_concurrent_requests": workers,
        },
    )
    answers = judge(
        [{"prompt": row["prompt"], "images": row["images"]} for row in rows],
        working_dir=str(out.parent / "curator"),
    )
    with out.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in answers.dataset)


def main() -> None:
    kind, data, images, template, base_url, out = sys.argv[1:]
    rows = json.loads(Path(data).read_text())
    common = (rows, Path(images), Path(template).read_text().rstrip("\n"), base_url, Path(out))
    if kind == "curator":
        curator(*common, workers=64)
    elif kind == "streaming":
        asyncio.run(sdk(*common, stream=True, workers=16, aiohttp=False))
    else:
        asyncio.run(sdk(*common, stream=False, workers=64, aiohttp=kind == "aiohttp"))
    complete = Path(out).read_text().count("</answer>")
    sys.exit(f"{complete} complete answers to {len(rows)} items" if complete != len(rows) else 0)


if __name__ == "__main__":
    main()
