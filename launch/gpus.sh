#!/usr/bin/env bash
# Print how many GPUs processes on this machine may use; 0 where there is none. The other scripts ask it.
set -euo pipefail
gpus=0
if command -v nvidia-smi >/dev/null; then
  gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
fi
if [[ -n ${CUDA_VISIBLE_DEVICES+set} && $gpus -gt 0 ]]; then
  gpus=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true)
fi
echo "$gpus"
