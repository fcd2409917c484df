#!/usr/bin/env bash
# Train on several machines. The same command on each of them, in any order:
#
#     NNODES=2 RDZV=host0:29500 launch/multinode.sh --config recipes/lecture.yaml --out-dir /shared/run
#     NNODES=2:4 MAX_RESTARTS=20 RDZV=host0:29500 launch/multinode.sh --data.batch-size 252 --out-dir /shared/run
#     NNODES=2 CPU_RANKS=2 RDZV=host0:29500 launch/multinode.sh --out-dir /shared/run
#
# NNODES        how many machines; or the fewest and the most, and the run goes on when some of them die or come back
# RDZV          one of the machines, by a name or address that all of them know, and a free port of it
# CPU_RANKS     processes on this machine's CPU; without it there is one for each GPU
# MAX_RESTARTS  (3) how often this machine may start its processes again; others that leave or come do not count
# RUN_ID        (the --out-dir) what tells two runs apart that meet at one RDZV
# RDZV_CONF     torch's settings of the meeting, such as last_call_timeout=10: seconds to wait for more than the fewest
#
# --out-dir is a folder that all machines share: checkpoints are written by one of them and read by all.
# Expect: the run card, on one of them, shows all processes. Where a machine dies, the others say so within
# --runtime.timeout-seconds, and go on from the newest checkpoint at the size that is left, with the same global batch,
# which has to divide by every size. Where the machine of RDZV dies, all end, and the same command again continues.
# Exit codes: 0 done, 2 a mistake in the line above, 1 all else, with a line "error: ..." above the launcher's own.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
  echo "error: $1" >&2
  exit 2
}

command -v accelerate >/dev/null || fail "accelerate is not installed here: 'make install', then 'source .venv/bin/activate'"
out='' previous=''
for word in "$@"; do
  [[ $previous != --out-dir ]] || out=$word
  [[ $word != --out-dir=* ]] || out=${word#*=}
  previous=$word
done
[[ -n $out ]] || fail "give --out-dir, a folder that all machines share"

nodes=${NNODES:-}
[[ $nodes =~ ^([1-9][0-9]*)(:([1-9][0-9]*))?$ ]] ||
  fail "NNODES must be a number of machines, or the fewest and the most as in 2:4, not '$nodes'"
most=${BASH_REMATCH[3]:-$nodes}
((BASH_REMATCH[1] <= most)) || fail "NNODES=$nodes: the fewest machines are more than the most"

meeting=${RDZV:-}
[[ $meeting =~ ^(.+):([1-9][0-9]{0,4})$ ]] || fail "RDZV must be a machine and a port, as in host0:29500, not '$meeting'"
host=${BASH_REMATCH[1]} port=${BASH_REMATCH[2]}
((port <= 65535)) || fail "RDZV=$meeting: there is no port $port"

restarts=${MAX_RESTARTS:-3}
[[ $restarts =~ ^(0|[1-9][0-9]*)$ ]] || fail "MAX_RESTARTS must be a number, not '$restarts'"

on_cpu=()
if [[ -n ${CPU_RANKS:-} ]]; then
  ranks=$CPU_RANKS on_cpu=(--runtime.cpu)
  [[ $ranks =~ ^[1-9][0-9]*$ ]] || fail "CPU_RANKS must be a number of processes, not '$ranks'"
else
  ranks=$("$here/launch/gpus.sh")
  # Not the CPU instead: the other machines would wait for a GPU's messages.
  ((ranks > 0)) || fail "there is no GPU here: see what nvidia-smi says, or give CPU_RANKS on all machines"
fi

# The address under which RDZV's machine sees this one; asking the system for the way sends nothing. RDZV's machine is
# told so: torch would look for its address among those of its own name, where Debian has only 127.0.1.1.
answer=$(python -c '
import socket, sys
try:
    family, *_, target = socket.getaddrinfo(*sys.argv[1:], type=socket.SOCK_DGRAM)[0]
    way = socket.socket(family, socket.SOCK_DGRAM)
    way.connect(target)
except OSError as error:
    sys.exit(f"error: RDZV: {sys.argv[1]} cannot be reached: {error}")
own = way.getsockname()[0]
print(own, "is_host=true" if own == target[0] else "")' "${host//[][]/}" "$port") || exit 2
read -r address settings <<<"$answer"
[[ -z ${RDZV_CONF:-} ]] || settings=${settings:+$settings,}$RDZV_CONF
[[ $most == 1 || ! $address =~ ^(127\.|::1$) ]] ||
  fail "RDZV: $host is $address on this machine, where no other can reach it: name its address in the network"

# All machines meet before they launch, and say what would stand in the way. The wait is torch's own for its meeting.
PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} python -m alexnet_dist.doctor --quiet --nnodes "$nodes" --rdzv "$meeting" \
  --wait 600 --num-processes $((most * ranks)) --config-file "$here/accelerate_config.yaml" \
  ${on_cpu[@]+"${on_cpu[@]}"} "$@" || exit $?

# `accelerate launch` has no flag for a range of machines, but torch's launcher, which it calls, reads PET_ variables.
export PET_NNODES=$nodes PET_RDZV_ENDPOINT=$meeting PET_RDZV_ID=${RUN_ID:-$out} PET_LOCAL_ADDR=$address
# Launchers that keep one store for all restarts forget to tell each other where it is once the first one is gone.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Of --main_process_port nothing is used here, but 29500, its default, would be looked at: where it is taken, the
# launcher would turn to meeting nobody.
exec accelerate launch --config_file "$here/accelerate_config.yaml" --num_processes "$ranks" --main_process_port 0 \
  --rdzv_backend c10d --rdzv_conf "$settings" --max_restarts "$restarts" \
  "$here/train.py" ${on_cpu[@]+"${on_cpu[@]}"} "$@"
