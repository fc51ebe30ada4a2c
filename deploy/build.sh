#!/usr/bin/env bash
# Builds the image of the services with this machine's pip configuration (index, CA, wheels).
# usage: [BASE_IMAGE=...] [TORCH_INDEX=...] [TORCH_BUILD=...] [WHEELS_DIR=...] deploy/build.sh [IMAGE]
#   BASE_IMAGE   default: the Dockerfile's; without a registry, what deploy/local-base.sh made
#   TORCH_INDEX  an index with that build of torch: the address that PyTorch's install page shows for it
#   TORCH_BUILD  default: cpu. A CUDA build, such as cu130, makes the image for an NVIDIA GPU
#   WHEELS_DIR   a folder with a wheel of that build; default: the folders of pip's find-links
# Exit status 69: it cannot be built on this machine; the last line says why.
set -euo pipefail

torch_build="${TORCH_BUILD:-cpu}"
if [ "$torch_build" = cpu ]; then
    image="${1:-tandem:local}"
    variant=()
else
    image="${1:-tandem:gpu}"
    variant=(--build-arg EXTRAS=cuda --build-arg "PACKAGES=gcc libc6-dev") # Triton compiles launchers
fi
root="$(cd "$(dirname "$0")/.." && pwd)"
context="$(mktemp --directory)"
trap 'rm --recursive --force "$context"' EXIT
pip="$context/deploy/pip"
pip_settings="$(python3 -m pip config list)"

# The value of a pip option on this machine; the environment stands over the files.
pip_setting() {
    local section value
    for section in :env: global; do
        value="$(sed -n "s/^$section\.$1='\(.*\)'$/\1/p" <<<"$pip_settings")"
        if [ -n "$value" ]; then
            echo "${value//\\n/ }"
            return
        fi
    done
}

# Folders of this machine mean nothing in the build.
only_remote() {
    tr ' ' '\n' | sed -n '/^https\?:/p' | paste --serial --delimiters ' '
}

write_pip_configuration() {
    local key value certificate
    certificate="$(pip_setting cert)"
    echo '[global]'
    for key in index-url extra-index-url find-links; do
        value="$(pip_setting "$key" | only_remote)"
        [ -z "$value" ] || echo "$key = $value"
    done
    value="$(pip_setting trusted-host)"
    [ -z "$value" ] || echo "trusted-host = $value"
    if [ -n "$certificate" ]; then
        cp --dereference "$certificate" "$pip/ca.pem"
        echo 'cert = /opt/pip/ca.pem'
    fi
}

copy_wheels() {
    local source
    for source in ${WHEELS_DIR:-$(pip_setting find-links)}; do
        source="${source#file://}"
        [ ! -d "$source" ] ||
            find "$source" -maxdepth 1 -name "torch-*+$torch_build*.whl" -exec cp --target-directory "$pip" {} +
    done
}

has_torch() {
    [ -n "${TORCH_INDEX:-}" ] || compgen -G "$pip/torch-*.whl" >/dev/null ||
        grep --quiet --extended-regexp '^(extra-index-url|find-links)' "$pip/pip.conf"
}

mkdir --parents "$pip"
write_pip_configuration >"$pip/pip.conf"
copy_wheels
if ! has_torch; then
    echo "no $torch_build build of torch: set TORCH_INDEX or WHEELS_DIR" >&2
    exit 69
fi
tar --create --file "$context/context.tar" --directory "$root" --exclude=__pycache__ \
    pyproject.toml README.md LICENSE bench tandem services kernels deploy/Dockerfile deploy/requirements.py
tar --append --file "$context/context.tar" --directory "$context" deploy/pip

# Host networking: an index that only this machine's own network reaches is reached from the build too.
docker build --network host --file deploy/Dockerfile --tag "$image" \
    --build-arg "TORCH_BUILD=$torch_build" "${variant[@]}" \
    ${BASE_IMAGE:+--build-arg "BASE_IMAGE=$BASE_IMAGE"} ${TORCH_INDEX:+--build-arg "TORCH_INDEX=$TORCH_INDEX"} \
    --build-arg http_proxy --build-arg https_proxy --build-arg no_proxy - <"$context/context.tar"
