"""Serve a reward model over HTTP: /compare and /rank for pictures, by a running `vllm serve`.

    scripts/serve.sh runs/result                                  # the server behind, at port 8000
    python scripts/serve_reward.py --template runs/template.txt   # http://127.0.0.1:8100
    curl -s http://127.0.0.1:8100/compare -H 'Content-Type: application/json' \\
        -d "{\\"prompt\\": \\"a red cube\\", \\"candidates\\": [\\"$(base64 -w0 a.png)\\", \\"$(base64 -w0 b.png)\\"]}"

Further pages: /health, /ready, /metrics. SIGTERM ends it when what is in flight has its answer.
"""

import os

from cot_reward import errors, settings
from cot_reward.reward.settings import RewardSettings
from cot_reward.service.settings import ServiceSettings


def main() -> int:
    asked, chosen = settings.parse_several((RewardSettings, ServiceSettings), __doc__ or "")
    from cot_reward.service.run import serve

    return serve(asked, chosen, api_key=os.environ.get("OPENAI_API_KEY") or "none")


if __name__ == "__main__":
    errors.run_script(main)
