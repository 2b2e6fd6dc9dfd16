#!/usr/bin/env bash
# The whole chain in small, on real LLaMA-Factory, vLLM and TRL:
#
#     make demo                       # = scripts/demo.sh --seeds "0"
#     make demo SEEDS="0 1 2"         # three runs over one base, pooled in one table
#
# A step whose summary exists is skipped, so that a stopped demo continues at the unfinished step.
# Options: --seeds "N ..."; --configs DIR (configs/demo); --world FILE (DIR/world.yaml);
# --data DIR (dataset/demo); --runs DIR (runs/demo); --eval-samples N (4);
# --pool NAME (heldout): the comparisons of the table; choose settings on the pool validation.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seeds=0 configs=configs/demo data=dataset/demo runs=runs/demo world= eval_samples=4 pool=heldout
while (($#)); do
  case $1 in
    --seeds) seeds=$2 ;;
    --configs) configs=$2 ;;
    --world) world=$2 ;;
    --data) data=$2 ;;
    --runs) runs=$2 ;;
    --eval-samples) eval_samples=$2 ;;
    --pool) pool=$2 ;;
    *) echo "error: unknown option $1" >&2; sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
  esac
  shift 2
done
world=${world:-$configs/world.yaml}
main=.envs/main/bin sft=.envs/sft/bin
# One thread per trainer, and no spinning: in models as small as these two threads mostly wait for
# each other, and a step takes several times as long as soon as another process runs.
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
port=$($main/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir -p "$runs"

server_pid= server_model=
stop_server() {
  if [[ -n $server_pid ]]; then
    kill -TERM "$server_pid" 2>/dev/null || true
    wait "$server_pid" 2>/dev/null || true
  fi
  server_pid= server_model=
}
trap stop_server EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# serve MODEL: start a server for this model, unless it runs already; stop the server of another model.
serve() {
  [[ $server_model == "$1" ]] && return
  stop_server
  echo "== serve $1 (about a minute)"
  coproc SERVER { exec scripts/serve.sh "$1" --port "$port" --limit-mm-per-prompt '{"image":2}' --max-num-seqs 256; }
  server_pid=$SERVER_PID
  local url
  read -r url <&"${SERVER[0]}" || { echo "error: no server for $1" >&2; exit 1; }
  server_model=$1
}

# step NAME FILE COMMAND...: run the command, which writes FILE last, unless FILE exists.
step() {
  local name=$1 file=$2 started=$SECONDS
  shift 2
  if [[ -e $file ]]; then
    echo "== $name: done"
    return
  fi
  printf '== %s\n+ %s\n' "$name" "$*"
  "$@"
  [[ -e $file ]] || { echo "error: $name ended without $file" >&2; exit 1; }
  printf '{"step": "%s", "seconds": %d}\n' "$name" $((SECONDS - started)) >>"$runs/steps.jsonl"
}

# sft_train OUT ARGUMENTS...: train with LLaMA-Factory. Its own last file is written before its plots;
# summary.json is written after everything.
sft_train() {
  local out=$1
  shift
  stop_server
  rm -rf "$out"
  "$sft/llamafactory-cli" train "$@" output_dir="$out"
  echo '{"stage": "sft"}' >"$out/summary.json"
}

# check NAME ROWS MARKER: check every row and medium before a training, then write MARKER.
check() {
  step "$1" "$3" and_mark "$3" $main/python scripts/check_rows.py "$2"
}
and_mark() {
  local marker=$1
  shift
  "$@"
  touch "$marker"
}

# infer MODEL NAME OUT ARGUMENTS...: run the client against a server of this model.
infer() {
  local model=$1 name=$2 out=$3
  shift 3
  [[ -e $out/summary.json ]] || serve "$model"
  step "$name" "$out/summary.json" $main/python scripts/image_stream_gpt.py \
    --config $configs/inference.yaml --base-url "http://127.0.0.1:$port/v1" \
    --image-root "$data/images" --out "$out" "$@"
}

# evaluate MODEL NAME DIR SEED: answer the pool's comparisons in both orders, greedy and sampled.
evaluate() {
  infer "$1" "$2: $pool, greedy" "$3/greedy" \
    --data "$data/$pool.json" --temperature 0 --num-samples 1
  infer "$1" "$2: $pool, T=1" "$3/sampled" \
    --data "$data/$pool.json" --temperature 1 --num-samples "$eval_samples" --seed "$4"
}

step "world and base" "$runs/base/summary.json" \
  $main/python scripts/make_demo.py --config "$world" --out "$data" --model-out "$runs/base"
evaluate "$runs/base" "base" "$runs/eval_base" 0

for seed in $seeds; do
  run=$runs/seed$seed
  mkdir -p "$run"
  # LLaMA-Factory finds a data set by its name in dataset_info.json. Each seed has its own responses,
  # and therefore its own file.
  columns='"formatting": "sharegpt", "columns": {"messages": "conversations", "images": "images"}'
  cat >"$run/dataset_info.json" <<JSON
{"demo_cold_start": {"file_name": "$PWD/$data/cold_start.json", $columns},
 "demo_rejection": {"file_name": "stage1_infer/correct.jsonl", $columns}}
JSON
  check "seed $seed: check cold-start rows" "$data/cold_start.json" "$run/checked_cold_start"
  step "seed $seed: stage 1, cold start" "$run/stage1/summary.json" \
    sft_train "$run/stage1" "$configs/qwen_cold_start.yaml" seed="$seed" \
    model_name_or_path="$runs/base" dataset_dir="$run"
  infer "$run/stage1" "seed $seed: stage 1 answers the rejection pool" "$run/stage1_infer" \
    --data "$data/rejection.json" --temperature 0.7 --seed "$seed"
  evaluate "$run/stage1" "seed $seed: stage 1" "$run/eval_stage1" "$seed"
  check "seed $seed: check rejection rows" "$run/stage1_infer/correct.jsonl" "$run/checked_rejection"
  step "seed $seed: stage 2, rejection sampling" "$run/stage2/summary.json" \
    sft_train "$run/stage2" "$configs/rejection.yaml" seed="$seed" \
    model_name_or_path="$run/stage1" dataset_dir="$run"
  infer "$run/stage2" "seed $seed: stage 2 answers the DPO pool" "$run/stage2_infer" \
    --data "$data/dpo.json" --num-samples 4 --seed "$seed"
  # The converged model of stage 2 is mostly right or mostly wrong about a comparison. Samples at a
  # higher temperature find more comparisons with texts of both kinds; the merger keeps coherent texts.
  infer "$run/stage2" "seed $seed: stage 2 answers the DPO pool at T=1.3" "$run/stage2_infer_hot" \
    --data "$data/dpo.json" --num-samples 5 --temperature 1.3 --seed "$seed"
  evaluate "$run/stage2" "seed $seed: stage 2" "$run/eval_stage2" "$seed"
  stop_server
  step "seed $seed: pairs" "$run/pairs/summary.json" $main/python scripts/merge_json.py \
    --config "$configs/merge.yaml" \
    --correct "$run/stage2_infer/correct.jsonl" "$run/stage2_infer_hot/correct.jsonl" \
    --incorrect "$run/stage1_infer/incorrect.jsonl" "$run/stage2_infer/incorrect.jsonl" \
    "$run/stage2_infer_hot/incorrect.jsonl" \
    --exclude "$data/heldout.json" --image-root "$data/images" --out "$run/pairs"
  check "seed $seed: check pairs" "$run/pairs/train.jsonl" "$run/checked_pairs"
  for stage in stage3:dpo control:control_sft; do
    stop_server
    step "seed $seed: ${stage%:*}, ${stage#*:}" "$run/${stage%:*}/summary.json" \
      $main/accelerate launch -q --config_file "$configs/accelerate.yaml" \
      --num_cpu_threads_per_process "$OMP_NUM_THREADS" scripts/DPO_VL.py \
      --config "$configs/${stage#*:}.yaml" --model_name_or_path "$run/stage2" \
      --data_path "$run/pairs/train.jsonl" --image_folder dataset --seed "$seed" \
      --output_dir "$run/${stage%:*}"
    evaluate "$run/${stage%:*}" "seed $seed: ${stage%:*}" "$run/eval_${stage%:*}" "$seed"
  done
done
stop_server

$main/python scripts/report.py --runs "$runs" --seeds $seeds
