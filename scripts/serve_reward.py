"""Serve a reward model over HTTP: /compare and /rank for pictures, by a running `vllm serve`.

    scripts/serve.sh runs/result                                  # the server behind, at port 8000
    python scripts/serve_reward.py --template runs/template.txt   # http://127.0.0.1:8100
    curl http://127.0.0.1:8100/compare -H 'Content-Type: application/json' -d @question.json

question.json: {"prompt": "a red cube", "candidates": [PICTURE, PICTURE]}, as data URLs or base64.
Further pages: /rank, /health, /ready, /metrics. SIGTERM ends it when what is in flight is answered.
"""

import os

from cot_reward import errors, settings
from cot_reward.reward.settings import RewardSettings
from cot_reward.service.settings import ServiceSettings


def main() -> int:
    asked, chosen = settings.parse_several((RewardSettings, ServiceSettings), __doc__ or "")
    from cot_reward.service.run import serve

    return serve(asked, chosen, api_key=os.environ.get("OPENAI_API_KEY", ""))


if __name__ == "__main__":
    errors.run_script(main)
