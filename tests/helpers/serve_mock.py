"""The mock server as `scripts/serve.sh` starts vLLM: serve_mock.py --latency SECONDS --port N

It prints its address when it answers, and ends with SIGTERM.
"""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path


def main() -> int:
    _, _, latency, _, port = sys.argv
    command = [sys.executable, str(Path(__file__).resolve().with_name("server.py")), port, "mock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        signal.signal(signal.SIGTERM, lambda *_: server.kill())
        assert server.stdout is not None
        server.stdout.readline()
        body = json.dumps({"latency": float(latency), "slots": 0}).encode()
        urllib.request.urlopen(f"http://127.0.0.1:{port}/configure", body, 30).close()
        print(f"http://127.0.0.1:{port}/v1", flush=True)
        return server.wait()


if __name__ == "__main__":
    sys.exit(main())
