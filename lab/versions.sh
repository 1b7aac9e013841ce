#!/bin/bash
# Several versions of Firecracker side by side: a template that the oldest froze is thawed by the oldest once newer ones are there, new
# templates come of the newest, and without the oldest its template is refused with the version that it wants.
set -euo pipefail

spore=/cargo/spore
mapfile -t versions < <(cd /cargo/vmms && printf '%s\n' firecracker-* | sort -V)
oldest=${versions[0]} newest=${versions[-1]}
data=$(mktemp -d -p "${TMPDIR:-/var/tmp}" spore-versions.XXXXXX)
export SPORE_DATA=$data
server=

finish() {
  status=$?
  trap - EXIT
  [ -z "$server" ] || { kill -TERM "$server" && wait "$server" || true; }
  [ "$status" -eq 0 ] || tail -n 60 "$data.log"
  "$spore" doctor --clean --sandboxes
  rm -rf "$data" "$data.log" "$data.both"
  exit "$status"
}
trap finish EXIT

# restart ends the server and starts it with the versions in a directory.
restart() {
  [ -z "$server" ] || { kill -TERM "$server"; wait "$server"; }
  "$spore" serve --listen 127.0.0.1:0 --engine firecracker --firecracker-dir "$1" >>"$data.log" 2>&1 </dev/null &
  server=$!
  for _ in $(seq 600); do
    "$spore" template ls >/dev/null 2>&1 && return
    kill -0 "$server" 2>/dev/null || { echo "FAIL the server ended"; exit 1; }
    sleep 0.1
  done
  "$spore" template ls
}
# runs expects the newest sandbox's hypervisor to be of a version. The jailer has copied it.
runs() {
  local sandbox=$1 want=$2 record
  record=$(grep -l "\"sandbox\":\"$sandbox\"" "$data"/vms/*/owner.json)
  grep -q "/$want/firecracker\"" "${record%/*}/firecracker/vm.json" || { cat "${record%/*}/firecracker/vm.json"; echo "FAIL $sandbox does not run under $want"; exit 1; }
  [ "$("$spore" sandbox exec "$sandbox" -- echo in "$want")" = "in $want" ]
  echo "PASS a sandbox under $want"
}

mkdir "$data.both"
for version in "${versions[@]}"; do
  ln -s "/cargo/vmms/$version/$version" "$data.both/$version"
done
restart "/cargo/vmms/$oldest"
"$spore" kernel install --kernel /cargo/vmlinuz --modules "/lib/modules/$(uname -r)"
"$spore" template build old --image oci:/cargo/image:latest >/dev/null
restart "$data.both"
"$spore" template build new --image oci:/cargo/image:latest >/dev/null
runs "$("$spore" sandbox create old -q)" "$oldest"
runs "$("$spore" sandbox create new -q)" "$newest"
restart "/cargo/vmms/$newest"
if "$spore" sandbox create old >"$data.log.refused" 2>&1; then
  echo "FAIL a template of $oldest starts under $newest"
  exit 1
fi
cat "$data.log.refused"
rm "$data.log.refused"
"$spore" compat matrix
echo "PASS without $oldest its template is refused"
