#!/usr/bin/env bash
# Fails when the committed generated code is not what protos/ gives. Usage: scripts/check_generated.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
scripts/generate_code.sh "$1" "$fresh"
compare() { (cd "$1" && find tokenwire -name '*_pb2*' ! -path '*/__pycache__/*' -print0 | sort -z | xargs -0 sha256sum); }
if ! diff <(compare "$fresh") <(compare clients/python); then
    echo "generated code is stale: run 'make proto' and commit the result" >&2
    exit 1
fi
