#!/usr/bin/env bash
# A training on several machines: the same command on each of them, with its own NODE_RANK.
#
#     NNODES=2 NODE_RANK=0 MASTER_ADDR=node-0 scripts/nodes.sh \
#         llamafactory-cli train configs/two_nodes/qwen_cold_start.yaml
#     NNODES=2 NODE_RANK=0 MASTER_ADDR=node-0 scripts/nodes.sh \
#         accelerate launch --config_file configs/accelerate/zero2_two_nodes.yaml \
#         scripts/DPO_VL.py --config configs/two_nodes/dpo.yaml
#     NNODES=2 NODE_RANK=0 MASTER_ADDR=node-0 scripts/nodes.sh torchrun \
#         scripts/DPO_VL.py --config configs/two_nodes/dpo.yaml --deepspeed configs/deepspeed/zero2.json
#
# Under Slurm the variables come from srun: scripts/slurm.sbatch. MASTER_ADDR is a name or address of node 0
# that the others reach; MASTER_PORT (29500) a port of it; NPROC_PER_NODE the GPUs of a node (those that
# are found); NODES_WAIT the seconds to wait for the other nodes (600).
set -euo pipefail

home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
fail() {
  echo "error: $1" >&2
  exit 2
}

if [[ -n ${SLURM_PROCID:-} && -z ${NNODES:-} ]]; then
  NNODES=${SLURM_STEP_NUM_NODES:-${SLURM_NNODES:-1}}
  NODE_RANK=${SLURM_NODEID:?}
  tasks=${SLURM_STEP_NUM_TASKS:-${SLURM_NTASKS:-1}}
  [[ $tasks == "$NNODES" ]] ||
    fail "srun started $tasks tasks on $NNODES nodes; one a node is needed (--ntasks-per-node=1), which starts a process for each GPU"
  if [[ -z ${MASTER_ADDR:-} ]]; then
    listed=$(scontrol show hostnames "${SLURM_STEP_NODELIST:-${SLURM_JOB_NODELIST:-}}") ||
      fail "scontrol does not tell the nodes of this job; set MASTER_ADDR to the name of the first one"
    MASTER_ADDR=${listed%%$'\n'*}
  fi
  # Jobs that share a node must not share a port.
  MASTER_PORT=${MASTER_PORT:-$((20000 + ${SLURM_JOB_ID:-0} % 10000))}
fi
for name in NNODES NODE_RANK MASTER_ADDR; do
  [[ -n ${!name:-} ]] || fail "$name is not set; sed -n 2,16p scripts/nodes.sh shows all variables"
done
export NNODES NODE_RANK MASTER_ADDR MASTER_PORT=${MASTER_PORT:-29500}
for name in NNODES NODE_RANK MASTER_PORT; do
  [[ ${!name} =~ ^[0-9]+$ ]] || fail "$name=${!name} is no number"
done
if [[ -z ${NPROC_PER_NODE:-} ]]; then
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    # As CUDA reads it: an entry that is empty or below 0 hides all behind it.
    NPROC_PER_NODE=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | sed -E '/^ *(-.*)?$/,$d' | grep -c . || true)
  else
    NPROC_PER_NODE=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true)
  fi
fi
[[ $NPROC_PER_NODE =~ ^[1-9][0-9]*$ ]] ||
  fail "no GPU is found on $(hostname)${CUDA_VISIBLE_DEVICES+ (CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES)}; NPROC_PER_NODE is the number of processes to start"
export NPROC_PER_NODE

program=${1:-} environment=main training=()
case $program in
  llamafactory-cli)
    [[ ${2:-} == train && $# -ge 3 ]] || fail "llamafactory-cli train YAML [KEY=VALUE ...] is wanted"
    environment=sft training=("${@:3}")
    export FORCE_TORCHRUN=1
    # Each node prepares the rows itself, and two must not write one cache.
    export HF_DATASETS_CACHE=${HF_DATASETS_CACHE:-${HF_HOME:-$HOME/.cache/huggingface}/datasets}/node$NODE_RANK
    ;;
  accelerate)
    [[ ${2:-} == launch ]] || fail "accelerate launch ... is wanted"
    set -- accelerate launch --num_machines "$NNODES" --num_processes $((NNODES * NPROC_PER_NODE)) \
      --machine_rank "$NODE_RANK" --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" "${@:3}"
    ;;
  torchrun)
    set -- torchrun --nnodes "$NNODES" --nproc_per_node "$NPROC_PER_NODE" --node_rank "$NODE_RANK" \
      --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" "${@:2}"
    ;;
  *) fail "'$program': llamafactory-cli train, accelerate launch or torchrun is wanted" ;;
esac
[[ -x $home/.envs/$environment/bin/$program ]] ||
  fail "the environment $environment is not built on $(hostname); run: make envs"

"$home/.envs/main/bin/python" "$home/scripts/check_nodes.py" --nodes "$NNODES" --rank "$NODE_RANK" \
  --address "$MASTER_ADDR" --port "$MASTER_PORT" --processes "$NPROC_PER_NODE" \
  --environment "$home/.envs/$environment" --wait "${NODES_WAIT:-600}" "${training[@]}"
export PATH="$home/.envs/$environment/bin:$PATH"
exec "$@"
