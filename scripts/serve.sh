#!/usr/bin/env bash
# Serve a model directory with vLLM until Ctrl-C:
#
#     scripts/serve.sh runs/stage1 [--port 8000] [any other vllm flag]
#     scripts/serve.sh ORGANISATION/NAME          # a model of the Hugging Face hub
#     scripts/serve.sh runs/stage1 --tensor-parallel-size 2 --data-parallel-size 4
#
# Prints the base URL on standard output once the server answers. On failure it prints the last lines
# of the server's log and exits non-zero. However it ends, it leaves no process behind.
# The server's log: $SERVE_LOG, or runs/serve-PORT.log. $SERVE_TIMEOUT: seconds to wait (1800).
set -euo pipefail

home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ $# -lt 1 || $1 == -* ]]; then
  sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
model=${1%/}
shift
port=8000
name=$model
previous=
for argument in "$@"; do
  [[ $previous == --port ]] && port=$argument
  [[ $argument == --port=* ]] && port=${argument#--port=}
  [[ $previous == --served-model-name ]] && name=$argument
  [[ $argument == --served-model-name=* ]] && name=${argument#--served-model-name=}
  previous=$argument
done
# ORGANISATION/NAME is a model of the hub, where no folder of that name is meant.
offline=1
if [[ $model != runs/* && $model =~ ^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$ && ! -d ${model%%/*} ]]; then
  offline=0
elif [[ -f $model/adapter_config.json && ! -f $model/config.json ]]; then
  echo "error: $model is an adapter. Merge it into its base (llamafactory-cli export, or DPO_VL.py" >&2
  echo "without --merge_adapter false), or serve the base with:" >&2
  echo "  scripts/serve.sh BASE --enable-lora --lora-modules NAME=$model" >&2
  exit 2
elif [[ ! -f $model/config.json ]]; then
  echo "error: $model/config.json: no such file; MODEL_DIR is a folder that training has written, or" >&2
  echo "ORGANISATION/NAME of a model on the Hugging Face hub" >&2
  exit 2
fi

if nvidia-smi -L >/dev/null 2>&1; then
  environment=serve
  hardware=()
else
  # The CPU build: float32, all cores, and no compilation (it takes minutes and gains nothing at small
  # sizes). Chunked prefill is off: with it, vLLM 0.32 rewinds the generator of a seeded request, a CPU
  # generator cannot be rewound, and the engine dies ("CPU Generator does not use offset").
  environment=serve-cpu
  hardware=(--enforce-eager --dtype float32 --max-model-len 4096
    --no-enable-chunked-prefill --max-num-batched-tokens 8192)
  # Its gated delta nets are computed in bfloat16 only, and cache no prefix without chunked prefill.
  if grep -qs '"model_type": "qwen3_5"' "$model/config.json"; then
    hardware+=(--dtype bfloat16 --no-enable-prefix-caching)
  fi
  export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
  export VLLM_CPU_OMP_THREADS_BIND=${VLLM_CPU_OMP_THREADS_BIND:-nobind}
fi
python=$home/.envs/$environment/bin/python
if [[ ! -x $python ]]; then
  echo "error: the $environment environment is not built; run: make envs" >&2
  exit 2
fi
# A local folder needs no hub. No usage statistics are sent.
export HF_HUB_OFFLINE=$offline VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1

if "$python" -c "import socket; socket.create_connection(('127.0.0.1', $port), 1)" 2>/dev/null; then
  echo "error: port $port is taken; choose another with --port" >&2
  exit 2
fi
log=${SERVE_LOG:-$home/runs/serve-$port.log}
mkdir -p "$(dirname "$log")"

server=
cleanup() {
  local code=$?
  trap - EXIT INT TERM HUP
  if [[ -n $server ]]; then
    # Signal the whole process group: vLLM's engine and workers are separate processes.
    kill -TERM -- "-$server" 2>/dev/null || true
    for _ in $(seq 100); do
      kill -0 -- "-$server" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL -- "-$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The server has a session of its own, so that Ctrl-C reaches it through cleanup only. If this script
# is killed with -9, the kernel ends the server (pdeathsig).
launch=(setsid)
setpriv --help 2>/dev/null | grep -q pdeathsig && launch+=(setpriv --pdeathsig TERM)
"${launch[@]}" "$python" -m vllm.entrypoints.openai.api_server --model "$model" \
  --served-model-name "$model" --host 127.0.0.1 "${hardware[@]}" "$@" >"$log" 2>&1 </dev/null &
server=$!

fail() {
  echo "error: $1; the last lines of $log:" >&2
  tail -n 30 "$log" >&2
  exit 1
}
# A server that another start has put on this port meanwhile lists another model. A proxy of the
# environment is not asked: it does not know this machine's own addresses.
answers='
import json, sys, urllib.request
url = f"http://127.0.0.1:{sys.argv[1]}/v1/models"
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
listed = json.load(direct.open(url, timeout=5))["data"]
sys.exit(sys.argv[2] not in [model["id"] for model in listed])
'
deadline=$((SECONDS + ${SERVE_TIMEOUT:-1800}))
until "$python" -c "$answers" "$port" "$name" 2>/dev/null; do
  kill -0 "$server" 2>/dev/null || fail "the server ended before it answered"
  ((SECONDS < deadline)) || fail "no answer after ${SERVE_TIMEOUT:-1800} seconds"
  sleep 1
done
echo "http://127.0.0.1:$port/v1"
# A signal ends `wait` at once, so that cleanup is not delayed.
code=0
wait "$server" || code=$?
fail "the server ended by itself (exit code $code)"
