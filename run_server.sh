#!/usr/bin/env bash
# bash run_server.sh RUN_ID [further words]: serve a run.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -z "${1:-}" ]; then
  echo "usage: bash run_server.sh RUN_ID [--set section.key=value ...]" >&2
  exit 2
fi
run_id=$1
python=$here/.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$here/main_server.py" --cf "$here/config/fedml_config.yaml" --runs "$here/runs" \
  --rank 0 --role server --run_id "$run_id" "${@:2}"
