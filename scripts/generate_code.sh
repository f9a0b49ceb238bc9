#!/usr/bin/env bash
# Generates clients/python/tokenwire from protos/. An old grpcio-tools on purpose: code it makes runs with protobuf 6 and 7.
# Usage: scripts/generate_code.sh PYTHON, a Python that has requirements/codegen.txt installed.
set -euo pipefail
python=$(realpath -s "$1")
cd "$(dirname "$0")/.."
out=clients/python
find "$out/tokenwire" -name '*_pb2*' -delete
mapfile -t protos < <(find protos -name '*.proto' | sort)
PATH="$(dirname "$python"):$PATH" "$python" -m grpc_tools.protoc -I protos \
    --python_out="$out" --grpc_python_out="$out" --mypy_out="readable_stubs:$out" --mypy_grpc_out="readable_stubs:$out" "${protos[@]}" >/dev/null
# Files without services get empty gRPC modules; drop them.
for file in $(find "$out/tokenwire" -name '*_pb2_grpc.py'); do
    grep -q '^class ' "$file" || rm -f "$file" "${file}i"
done
