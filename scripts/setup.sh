#!/usr/bin/env bash
# Makes .venv ready to serve, or to serve and test. Usage: scripts/setup.sh serve|test
# Quick when nothing changed: a stamp holds the hash of everything that decides what is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-serve}
venv=${VENV:-.venv}
base=${PYTHON:-python3}
cpu_index=https://download.pytorch.org/whl/cpu

inputs=(constraints.txt scripts/setup.sh clients/python/pyproject.toml service/pyproject.toml gateway_openai/pyproject.toml)
[ "$what" = test ] && inputs+=(requirements/test.txt requirements/codegen.txt)
stamp="$venv/.$what-$(cat "${inputs[@]}" | sha256sum | cut -c1-16)"
[ -e "$stamp" ] && exit 0

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }

"$base" - <<'PY' || { echo "tokenwire needs Python 3.11, 3.12 or 3.13; set PYTHON=/path/to/python3.x" >&2; exit 1; }
import sys
raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PY
if [ ! -x "$venv/bin/python" ]; then
    say "creating $venv"
    "$base" -m venv "$venv"
fi
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

# The name may take longer to look up than the request may take to answer: a limit on both.
answers() {
    timeout 3 "$venv/bin/python" - "$cpu_index/torch/" <<'PY' 2>/dev/null
import sys, urllib.request
urllib.request.urlopen(urllib.request.Request(sys.argv[1], method="HEAD"), timeout=2).close()
PY
}
if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    torch=$(grep '^torch==' constraints.txt)
    if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
        say "installing $torch for CUDA"
        "${pip[@]}" install "$torch"
    elif answers; then
        say "installing $torch for the CPU"
        "${pip[@]}" install --index-url "$cpu_index" "$torch"
    else
        say "installing $torch"
        "${pip[@]}" install "$torch"
    fi
fi
say "installing tokenwire"
"${pip[@]}" install --progress-bar on -q -c constraints.txt -e clients/python -e service -e gateway_openai
if [ "$what" = test ]; then
    say "installing test tools"
    "${pip[@]}" install -q -c constraints.txt -r requirements/test.txt
    if [ ! -x "$venv-codegen/bin/python" ]; then
        "$base" -m venv "$venv-codegen"
    fi
    "$venv-codegen/bin/python" -m pip --disable-pip-version-check install -q -r requirements/codegen.txt
fi
find "$venv" -maxdepth 1 -name ".$what-*" -delete
touch "$stamp"
