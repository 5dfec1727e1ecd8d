#!/usr/bin/env bash
# bash run_mpi.sh CLIENTS [RUN_ID [further words]]: run a server and its clients as one MPI world.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if ! [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: bash run_mpi.sh CLIENTS [RUN_ID [--set section.key=value ...]]" >&2
  exit 2
fi
clients=$1
run_id=${2:-mpi-$(date +%Y%m%d-%H%M%S)}
python=$here/.venv/bin/python
[ -x "$python" ] || python=python3
mpirun=$here/.venv/bin/mpirun
[ -x "$mpirun" ] || mpirun=$(command -v mpirun) || {
  echo "run_mpi.sh: no mpirun found; run: pip install 'lightsecagg[mpi]'" >&2
  exit 2
}
words=(-n $((clients + 1)) --oversubscribe --bind-to none)
# Only Open MPI from 5 on lets the others live when one process dies.
if "$mpirun" --version | grep -Eq 'Open MPI\) ([5-9]|[1-9][0-9])'; then
  words+=(--with-ft ulfm)
fi
[ "$(id -u)" != 0 ] || words+=(--allow-run-as-root)
# All processes share this machine: numerical libraries that each take every core would only be in each
# other's way.
threads=$(($(nproc) / (clients + 1)))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 1 ? threads : 1))}
export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-$OMP_NUM_THREADS}
# The server's output goes through mpirun, which makes it look like a terminal's in any case.
if [ -t 1 ]; then
  export COLUMNS=${COLUMNS:-$(tput cols 2>/dev/null || echo 80)}
else
  export TERM=dumb
fi
exec "$mpirun" "${words[@]}" "$python" -m lightsecagg mpi --cf "$here/config/fedml_config.yaml" \
  --runs "$here/runs" --run_id "$run_id" "${@:3}"
