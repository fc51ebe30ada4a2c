#!/bin/sh
# Brings together what a machine without a network needs, for Python 3.12 on x86-64: the wheels of wheels.txt and, where
# the Azure conversation trace is named, some of its requests for the goodput section (see docs/gpu-bench.md).
# usage: bench/gpu/pack.sh [FOLDER [azure_llm_conv_2023.csv]]      (.whl when none is named)
set -eu
folder=${1:-.whl}
here=$(dirname "$0")
python=${PYTHON:-python3}
rm -rf "$folder"
$python -m pip download --quiet --no-deps --only-binary=:all: \
  --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform any \
  --dest "$folder" --requirement "$here/wheels.txt"
if [ $# -gt 1 ]; then
  $python "$here/extract_trace.py" "$2" "$folder/azure_extract.csv"
fi
bytes=$(cat "$folder"/* | wc -c)
echo "$folder: $(ls "$folder" | wc -l) files, $((bytes / 1048576)) MiB"
