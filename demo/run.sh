#!/usr/bin/env bash
# Shows what Spore does, on this machine, from an image to sandboxes that are frozen, thawed, forked, rolled back and
# committed; then removes all of it and proves that it is gone. Usage: make demo, or demo/run.sh after make build.
#
# DEMO_DATA names the directory for everything the demo makes (demo-data in the checkout).
set -euo pipefail
cd "$(dirname "$0")/.."
export GOFLAGS=-buildvcs=false

dir=$(realpath -m "${DEMO_DATA:-demo-data}")
data=$dir/data
spore=${SPORE:-$PWD/bin/spore}
server= registry=
export SPORE_DATA=$data

# ---------------------------------------------------------------------------------------------------------- printing

bold= dim= plain=
if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; fi

step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
note() { printf '%s  %s%s\n' "$dim" "$*" "$plain"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }
show() { # runs a command of the user's, showing it first
  printf '%s$ spore %s%s\n' "$dim" "$*" "$plain"
  "$spore" "$@"
}

rows=()
row() { rows+=("$1|$2|$3|$4"); } # what, milliseconds, its floor in milliseconds, what the floor is

now() { echo $((${EPOCHREALTIME/./} / 1000)); }
took=0
timed() { # runs a command and leaves its milliseconds in took
  local began; began=$(now)
  "$@"
  took=$(($(now) - began))
}

# --------------------------------------------------------------------------------------------------------- leaving

# leftovers prints the processes of this demo or an interrupted one: hypervisors, whose working directories lie in the
# demo's, and the server and the registry, which were given directories in it.
leftovers() {
  local p
  for p in /proc/[0-9]*; do
    case "$(readlink "$p/cwd" 2>/dev/null || true)/" in "$data"/*) echo "${p#/proc/}" && continue ;; esac
    if tr '\0' '\n' 2>/dev/null <"$p/cmdline" | grep -qxF -e "$data" -e "$dir/registry"; then echo "${p#/proc/}"; fi
  done
}

stop_server() {
  [ -n "$server" ] || return 0
  local pid=$server
  server=
  kill -TERM "$pid" 2>/dev/null || true
  wait "$pid"
}

leave() {
  local status=$? pid
  trap - EXIT INT TERM
  if [ "$status" -ne 0 ] && [ -s "$dir/serve.log" ]; then
    echo "--- the server's log, last lines" >&2
    tail -n 20 "$dir/serve.log" >&2
  fi
  stop_server || true
  [ -z "$registry" ] || kill "$registry" 2>/dev/null || true
  for pid in $(leftovers); do kill -KILL "$pid" 2>/dev/null || true; done
  [ -z "$dir" ] || rm -rf "$dir"
  exit "$status"
}

# ---------------------------------------------------------------------------------------------------------- the demo

[ -x "$spore" ] || fail "there is no $spore: run make build"
if [ -e "$dir" ] && [ -n "$(ls -A "$dir")" ]; then
  [ -e "$dir/.spore-demo" ] || fail "$dir is not empty and not of an earlier demo"
  note "an earlier demo was interrupted; removing what it left"
  for pid in $(leftovers); do kill -KILL "$pid"; done
  rm -rf "$dir"
fi
mkdir -p "$dir/registry"
touch "$dir/.spore-demo"
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step "A server, on this machine"
"$spore" serve --data "$data" --listen 127.0.0.1:0 >"$dir/serve.log" 2>&1 </dev/null &
server=$!
for _ in $(seq 600); do
  "$spore" template ls >/dev/null 2>&1 && break
  kill -0 "$server" 2>/dev/null || fail "the server ended at once"
  sleep 0.05
done
"$spore" template ls >/dev/null || fail "the server does not answer"
show doctor

step "A guest kernel"
show kernel install

step "An image: Debian with Python 3, in a registry on loopback"
mkdir -p .cache/demo
go build -o .cache/demo/registry ./demo/registry
go build -o .cache/demo/floor ./demo/floor
.cache/demo/registry --dir "$dir/registry" >"$dir/registry.address" 2>"$dir/registry.log" </dev/null &
registry=$!
for _ in $(seq 100); do [ -s "$dir/registry.address" ] && break; sleep 0.05; done
address=$(cat "$dir/registry.address")
[ -n "$address" ] || fail "the registry does not answer: $(cat "$dir/registry.log")"
timed demo/image.sh .cache/demo "$address/python:demo"
note "made and pushed in $took ms"

step "A template of it"
timed show template build demo-python --image "$address/python:demo" --ready-port 8000 --memory 256M --disk 1G
row "template build (pull, root filesystem, boot, freeze)" "$took" "" ""

step "A sandbox"
sandbox= # created once untimed: the first use pages everything in
warm=$("$spore" sandbox create demo-python -q)
"$spore" sandbox rm "$warm" >/dev/null
first() { "$spore" sandbox exec "$1" -- /bin/true; } # the first command, up to which the floor is measured as well
create() { sandbox=$("$spore" sandbox create demo-python -q) && first "$sandbox"; }
timed create
created=$took
note "sandbox $sandbox; created, and its first command answered, after $created ms"
show sandbox exec "$sandbox" -- python3 -c 'import sys, platform; print("Python", sys.version.split()[0], "on Linux", platform.release())'
show sandbox exec "$sandbox" -- python3 whoami.py /next
show sandbox exec -u root "$sandbox" -- sh -c 'echo "written before the snapshot" >/srv/note; cat /srv/note'

step "A snapshot, while it runs"
snapshot=
freeze() { snapshot=$("$spore" snapshot create "$sandbox" --name demo-point -q); }
timed freeze
frozen=$took
paused=$("$spore" job ls --operation SNAPSHOT_CREATE -o json | grep -o '"pausedMicros": *[0-9]*' | head -n 1 | grep -o '[0-9]*$')
note "snapshot $snapshot, after $frozen ms; the guest stood still for $((paused / 1000)).$(printf %03d $((paused % 1000))) ms of them"

step "Four forks of it: one memory, four identities"
forks=()
branch() {
  local f pids=()
  mapfile -t forks < <("$spore" fork demo-point -n 4 -q)
  [ "${#forks[@]}" -eq 4 ] || fail "${#forks[@]} forks came back"
  for f in "${forks[@]}"; do first "$f" & pids+=($!); done
  for f in "${pids[@]}"; do wait "$f"; done
}
timed branch
forked=$took
for f in "${forks[@]}"; do "$spore" sandbox exec "$f" -- python3 whoami.py /next; done | tee "$dir/forks"
for column in 2 4 6; do
  [ "$(awk -v c=$column '{print $c}' "$dir/forks" | sort -u | wc -l)" -eq 4 ] || fail "forks share an identity"
done
[ "$(awk '{print $NF}' "$dir/forks" | sort -u)" = 2 ] || fail "the forks do not go on from the snapshot's memory"

step "Back to the snapshot"
show sandbox exec -u root "$sandbox" -- sh -c 'echo "changed after it" >/srv/note; cat /srv/note'
show sandbox exec "$sandbox" -- python3 whoami.py /next
back_to() { show rollback "$sandbox" demo-point && first "$sandbox"; }
timed back_to
back=$took
show sandbox exec "$sandbox" -- cat /srv/note
[ "$("$spore" sandbox exec "$sandbox" -- cat /srv/note)" = "written before the snapshot" ] || fail "the file is not back"
"$spore" sandbox exec "$sandbox" -- python3 whoami.py | tee "$dir/back"
[ "$(awk '{print $NF}' "$dir/back")" = 1 ] || fail "the counter is not back"

step "A template of what it has become, and a sandbox of that"
timed show template commit "$sandbox" demo-committed
row "commit (capture, flatten, register)" "$took" "" ""
committed=
create_committed() { committed=$("$spore" sandbox create demo-committed -q) && first "$committed"; }
timed create_committed
from_commit=$took
show sandbox exec "$committed" -- cat /srv/note
show snapshot log --graph

step "The floors: what the bare hypervisor needs, on the same frozen bytes"
url=$(sed -n 's/.*"url":"\([^"]*\)".*/\1/p' "$data/server.json")
floors=$(.cache/demo/floor --server "$url" --data "$data" --template demo-python)
thaw=$(awk '$1 == "thaw" {print $2}' <<<"$floors")
boot=$(awk '$1 == "boot" {print $2}' <<<"$floors")
cores=$(nproc)
row "sandbox create, to its first command" "$created" "$thaw" "bare QEMU thaw to first command"
row "snapshot, from asking to on disk" "$frozen" "" ""
row "snapshot, the guest stands still" "$(((paused + 500) / 1000))" "" ""
row "fork four ways, to the first command of each" "$forked" "$((4 * thaw / cores))" "4 bare thaws on $cores cores"
row "rollback, to the next command" "$back" "$thaw" "bare QEMU thaw to first command"
row "sandbox create from the commit, to its first command" "$from_commit" "$thaw" "bare QEMU thaw to first command"

step "Everything away again"
for s in "$sandbox" "$committed" "${forks[@]}"; do "$spore" sandbox rm "$s" >/dev/null; done
"$spore" snapshot rm demo-point >/dev/null
"$spore" template rm demo-committed >/dev/null
"$spore" template rm demo-python >/dev/null
[ -z "$("$spore" sandbox ls -q)$("$spore" template ls -q)$("$spore" snapshot ls -q)" ] || fail "something is still listed"
show gc
show fsck
for kernel in $("$spore" kernel ls -q); do "$spore" kernel rm "$kernel" >/dev/null; done
for kept in vms frozen/pieces frozen/manifests frozen/staging artifacts kernels; do
  [ -z "$(ls -A "$data/$kept" 2>/dev/null | grep -v '\.lock$' || true)" ] || fail "$kept is not empty: $(ls -A "$data/$kept")"
done
stop_server || fail "the server did not end well"
kill "$registry"
wait "$registry" || fail "the registry did not end well"
registry=
[ -z "$(leftovers)" ] || fail "processes are left: $(leftovers)"
grep -qF " $dir/" /proc/self/mountinfo && fail "a mount is left below $dir"
rm -rf "$dir"
note "no process, no mount and no file is left"

step "What it took, in milliseconds"
printf '%-54s %9s %9s %7s  %s\n' "" measured floor ratio "the floor is"
for r in "${rows[@]}"; do
  IFS='|' read -r what ms floor of <<<"$r"
  ratio=
  [ -z "$floor" ] || ratio=$(awk -v a="$ms" -v b="$floor" 'BEGIN { printf "%.2f x", a / (b > 0 ? b : 1) }')
  printf '%-54s %9s %9s %7s  %s\n' "$what" "$ms" "$floor" "$ratio" "$of"
done
note "a bare cold boot to the first command takes $boot ms, $(awk -v a="$boot" -v b="$created" 'BEGIN { printf "%.0f", a / b }') times as long as the create"
note "measured around the command line, once each, so that starting the program is part of it; make bench measures with care"
