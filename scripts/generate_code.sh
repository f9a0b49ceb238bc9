#!/usr/bin/env bash
# Generates the Python code of protos/ into OUT (default clients/python).
# Usage: scripts/generate_code.sh PYTHON [OUT], where PYTHON has requirements/codegen.txt installed. An old grpcio-tools on
# purpose: code it makes runs with protobuf 6 and 7.
set -euo pipefail
python=$(realpath -s "$1")
cd "$(dirname "$0")/.."
out=${2:-clients/python}
mkdir -p "$out/tokenwire"
find "$out/tokenwire" -name '*_pb2*' -delete
mapfile -t protos < <(find protos -name '*.proto' | sort)
PATH="$(dirname "$python"):$PATH" "$python" -m grpc_tools.protoc -I protos \
    --python_out="$out" --grpc_python_out="$out" \
    --mypy_out="quiet,readable_stubs:$out" --mypy_grpc_out="quiet,readable_stubs:$out" "${protos[@]}"
# A file without services gets an empty gRPC module; drop it.
find "$out/tokenwire" -name '*_pb2_grpc.py' -print0 | while IFS= read -r -d '' file; do
    grep -q '^class ' "$file" || rm -f "$file" "${file}i"
done
