#!/bin/sh
# Fetches the wheels of wheels.txt for Python 3.12 on x86-64 into a folder, for a machine without a network.
# usage: bench/gpu/pack.sh [FOLDER]      (.whl when none is named; see docs/gpu-bench.md)
set -eu
folder=${1:-.whl}
here=$(dirname "$0")
rm -rf "$folder"
${PYTHON:-python3} -m pip download --quiet --no-deps --only-binary=:all: \
  --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform any \
  --dest "$folder" --requirement "$here/wheels.txt"
bytes=$(cat "$folder"/*.whl | wc -c)
echo "$folder: $(ls "$folder" | wc -l) wheels, $((bytes / 1048576)) MiB"
