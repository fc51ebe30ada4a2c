#!/usr/bin/env bash
# Makes a base image (Debian bookworm, Python 3.11) on a machine that reaches no image registry.
# usage: deploy/local-base.sh [IMAGE]      as root, with a running Docker engine
# The packages come from DEBIAN_MIRROR, or else from the mirror that this machine's own apt uses.
# Exit status 69: it cannot be made on this machine; the last line says why.
set -euo pipefail

image="${1:-tandem-base:bookworm}"
suite=bookworm
packages=ca-certificates,python3,python3-venv

unavailable() {
    echo "$1" >&2
    exit 69
}

apt_mirror() {
    # shellcheck disable=SC2016  # apt fills the variables in
    apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        sed -n "s/^$suite //p" | head -n 1
}

if docker image inspect "$image" >/dev/null 2>&1; then
    echo "$image is there"
    exit 0
fi
[ "$(id -u)" = 0 ] || unavailable "making a base image needs root"
command -v debootstrap >/dev/null || unavailable "making a base image needs debootstrap"
mirror="${DEBIAN_MIRROR:-$(apt_mirror || true)}"
[ -n "$mirror" ] || unavailable "this machine's apt has no mirror of Debian $suite: set DEBIAN_MIRROR"

work="$(mktemp --directory "${TMPDIR:-/var/tmp}/tandem-base.XXXXXX")"
trap 'rm --recursive --force --one-file-system "$work"' EXIT
if ! debootstrap --variant=minbase --include="$packages" "$suite" "$work/root" "$mirror" >"$work/log" 2>&1; then
    tail --lines 20 "$work/log" >&2
    exit 1
fi
rm -rf "$work"/root/var/cache/apt/* "$work"/root/var/lib/apt/lists/* "$work"/root/var/log/*
tar --create --numeric-owner --one-file-system --directory "$work/root" . |
    docker import --change 'CMD ["bash"]' - "$image"
