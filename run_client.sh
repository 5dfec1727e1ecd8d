#!/usr/bin/env bash
# bash run_client.sh RANK RUN_ID [further words]: take part in a run as client RANK (from 1).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -z "${1:-}" ] || [ -z "${2:-}" ]; then
  echo "usage: bash run_client.sh RANK RUN_ID [--set section.key=value ...]" >&2
  exit 2
fi
rank=$1 run_id=$2
python=$here/.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$here/main_client.py" --cf "$here/config/fedml_config.yaml" --runs "$here/runs" \
  --rank "$rank" --role client --run_id "$run_id" "${@:3}"
