#!/usr/bin/env bash
# Train with all GPUs of this machine, one process each. Without a GPU: one process that uses all cores, or as many
# processes as CPU_RANKS says, which share them.
#
#     launch/node.sh --config recipes/lecture.yaml
#     CPU_RANKS=2 launch/node.sh --data.dataset digits --data.batch-size 64 --epochs 1
#
# Expect: the run card shows the number of processes that was meant. One process ends with train.py's own exit code;
# several with 0, or 1 and a line "error: ..." above the launcher's own.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
fail() {
  echo "error: $1" >&2
  exit 2
}
command -v accelerate >/dev/null || fail "accelerate is not installed here: 'make install', then 'source .venv/bin/activate'"
preflight() {
  PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} python -m alexnet_dist.doctor --quiet \
    --config-file "$here/accelerate_config.yaml" "$@" || exit $?
}

gpus=0
[[ -n ${CPU_RANKS:-} ]] || gpus=$("$here/launch/gpus.sh")

if ((gpus > 0)); then
  preflight --num-processes "$gpus" "$@"
  exec accelerate launch --config_file "$here/accelerate_config.yaml" --num_processes "$gpus" "$here/train.py" "$@"
fi
ranks=${CPU_RANKS:-1}
[[ $ranks =~ ^[1-9][0-9]*$ ]] || fail "CPU_RANKS must be a number of processes, not '$ranks'"
preflight --num-processes "$ranks" ${CPU_RANKS:+--runtime.cpu} "$@"
if ((ranks > 1)); then
  exec accelerate launch --config_file "$here/accelerate_config.yaml" --num_processes "$ranks" \
    --main_process_ip 127.0.0.1 "$here/train.py" --runtime.cpu "$@"
fi
# Not by `accelerate launch`, which dies of SIGTERM without passing it on and leaves its one process training.
exec python "$here/train.py" ${CPU_RANKS:+--runtime.cpu} "$@"
