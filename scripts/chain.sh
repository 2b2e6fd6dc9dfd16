#!/usr/bin/env bash
# The whole chain, from cold-start rows to the table; scripts/chain.sh --help lists everything:
#
#     scripts/chain.sh [--profile configs/demo] [--dry-run] [--from STEP] [--to STEP] [--only STEP ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ! -x .envs/main/bin/python ]]; then
  echo "error: the environments are not built; run: make envs" >&2
  exit 2
fi
exec .envs/main/bin/python scripts/run_chain.py "$@"
