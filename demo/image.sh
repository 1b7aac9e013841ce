#!/usr/bin/env bash
# Makes an OCI image of a Debian userland with Python 3 and the demo's program, out of Debian packages, and pushes it.
# Usage: image.sh CACHE REFERENCE. The userland is made once and kept in CACHE.
set -euo pipefail
cache=$1 reference=$2
here=$(cd "$(dirname "$0")" && pwd)
# The suite of this machine if it is a Debian that is released, else the one that Spore is tested with.
suite=$(. /etc/os-release && [ "${ID:-}" = debian ] && echo "${VERSION_CODENAME:-}" || true)
suite=${suite:-bookworm}

mkdir -p "$cache"
userland=$cache/debian-python-$suite.tar
if [ ! -s "$userland" ]; then
  echo "making a userland of Debian packages ($suite); the next demo will find it in $cache"
  mmdebstrap --quiet --variant=minbase --include=python3-minimal,libpython3-stdlib,ca-certificates \
    "$suite" "$userland.new.tar"
  mv "$userland.new.tar" "$userland"
fi

layout=$cache/layout
rm -rf "$layout"
umoci init --layout "$layout"
umoci new --image "$layout:demo"
umoci raw add-layer --image "$layout:demo" "$userland"
umoci insert --image "$layout:demo" "$here/app" /srv/app
umoci config --image "$layout:demo" --config.workingdir /srv/app --config.user nobody \
  --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  --config.cmd python3 --config.cmd /srv/app/counter.py
skopeo --insecure-policy copy --quiet --dest-tls-verify=false "oci:$layout:demo" "docker://$reference"
rm -rf "$layout"
