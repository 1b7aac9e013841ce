#!/bin/bash
# One whole life of a sandbox with the spore program as it is shipped: install a kernel, build a template, create, run,
# snapshot, fork, roll back, commit, start from the commit, clean up. Prints PASS and the time for each step.
#
# It runs in the outer guest of the lab, and on any host with the variables below set to fit. The engine is QEMU, or the Firecracker that
# the name of this file ends with.
set -euo pipefail

spore=${SPORE:-/cargo/spore}
image=${IMAGE:-oci:/cargo/image:latest}
vmlinuz=${VMLINUZ:-/cargo/vmlinuz}
modules=${MODULES:-/lib/modules/$(uname -r)}
accel=${ACCEL:-kvm}
engine=${ENGINE:-qemu}
case ${0##*/} in
*-lifecycle-*)
  engine=firecracker
  firecracker=/cargo/vmms/${0##*-lifecycle-}
  ;;
esac

data=$(mktemp -d -p "${TMPDIR:-/var/tmp}" spore-lifecycle.XXXXXX)
out=$data.out
log=$data.log
export SPORE_DATA=$data
server=

# hypervisors prints the processes that live in the data directory. A jail hides the path of its directory, not which one it is.
hypervisors() {
  local process homes
  homes=$(find "$data"/vms -type d -name root -exec stat -c %d:%i {} + 2>/dev/null || true)
  {
    find /proc/[0-9]*/ -maxdepth 1 \( -name root -o -name cwd \) -lname "$data*" 2>/dev/null | cut -d/ -f3 || true
    for process in /proc/[0-9]*; do
      grep -qxF "$(stat -Lc %d:%i "$process/cwd" 2>/dev/null || echo none)" <<<"$homes" && echo "${process#/proc/}"
    done
  } | sort -un || true
}

finish() {
  status=$?
  trap - EXIT
  if [ -n "$server" ] && kill -TERM "$server" 2>/dev/null; then
    wait "$server" || { echo "FAIL the server ended with status $?"; status=1; }
  fi
  if [ "$status" -ne 0 ]; then
    echo "--- the server's log, last lines"
    tail -n 60 "$log" || true
  fi
  # Sandboxes outlive the server on purpose; a life that was cut short leaves some.
  hypervisors | xargs -r kill -KILL
  rm -rf "$data" "$out" "$log"
  exit "$status"
}
trap finish EXIT

now() { date +%s%3N; }
began=$(now)
pass() {
  local at
  at=$(now)
  printf 'PASS %-58s %6d ms\n' "$*" $((at - began))
  began=$(now)
}
fail() {
  echo "FAIL $*"
  exit 1
}
# run runs spore and keeps its output in $out, shown only when it fails.
run() {
  "$spore" "$@" >"$out" 2>&1 </dev/null || { cat "$out"; fail "spore $*"; }
}
# id runs spore with -q and prints what it prints: ids.
id() {
  "$spore" "$@" -q 2>"$out" </dev/null || { cat "$out" >&2; fail "spore $* -q" >&2; }
}
# says expects a command in a sandbox to print a text.
says() {
  local sandbox=$1 want=$2 got
  shift 2
  got=$("$spore" sandbox exec "$sandbox" -- "$@" 2>"$out" </dev/null) || { cat "$out"; fail "exec in $sandbox: $*"; }
  [ "$got" = "$want" ] || fail "exec in $sandbox: $*: got '$got', want '$want'"
}

firecrackers=()
[ "$engine" = qemu ] || firecrackers=(--firecracker-dir "$firecracker")
"$spore" serve --listen 127.0.0.1:0 --engine "$engine" "${firecrackers[@]}" >"$log" 2>&1 </dev/null &
server=$!
for _ in $(seq 300); do
  "$spore" template ls >"$out" 2>&1 && break
  kill -0 "$server" 2>/dev/null || { cat "$log"; fail "the server ended at once"; }
  sleep 0.1
done
run template ls
pass "serve answers"

run kernel install --kernel "$vmlinuz" --modules "$modules"
pass "kernel install"
run doctor "${firecrackers[@]}"
pass "doctor"

run template build box --image "$image"
pass "template build"
a=$(id sandbox create box)
pass "sandbox create"
pid=$(hypervisors | head -n 1)
[ -n "$pid" ] || fail "no hypervisor runs"
case $engine:$(tr '\0' ' ' <"/proc/$pid/cmdline") in
firecracker:/firecracker*) pass "it runs in a jail: ${firecracker##*/}" ;;
qemu:*"-accel $accel"*) pass "it runs under $accel" ;;
*) fail "it does not run under $accel: $(tr '\0' ' ' <"/proc/$pid/cmdline")" ;;
esac
says "$a" "hello from inside" echo "hello from inside"
pass "exec"
says "$a" "" sh -c 'echo first >/root/mark; dd if=/dev/urandom of=/root/data bs=1M count=8 2>/dev/null; sync'
sum=$("$spore" sandbox exec "$a" -- md5sum /root/data </dev/null)
pass "write to its disk"

snap=$(id snapshot create "$a")
pass "snapshot create"
says "$a" "" sh -c 'echo second >/root/mark; rm /root/data'
says "$a" "second" cat /root/mark
mapfile -t forks < <(id fork "$snap" -n 2)
[ "${#forks[@]}" -eq 2 ] || fail "fork -n 2 named ${#forks[@]} sandboxes: ${forks[*]}"
b=${forks[0]} c=${forks[1]}
pass "fork, twice"
for fork in "$b" "$c"; do
  says "$fork" "first" cat /root/mark
  says "$fork" "$sum" md5sum /root/data
done
[ "$("$spore" sandbox exec "$b" -- cat /proc/sys/kernel/random/uuid </dev/null)" != \
  "$("$spore" sandbox exec "$c" -- cat /proc/sys/kernel/random/uuid </dev/null)" ] || fail "two forks drew one random number"
[ "$("$spore" sandbox exec "$b" -- hostname </dev/null)" != "$("$spore" sandbox exec "$c" -- hostname </dev/null)" ] ||
  fail "two forks have one host name"
pass "forks hold the snapshot's data and an identity of their own"

run rollback "$a" "$snap"
says "$a" "first" cat /root/mark
says "$a" "$sum" md5sum /root/data
pass "rollback"

run sandbox pause "$a"
run sandbox resume "$a"
says "$a" "first" cat /root/mark
pass "pause and resume"

says "$a" "" sh -c 'echo committed >/root/mark; sync'
run template commit "$a" box-committed
d=$(id sandbox create box-committed)
says "$d" "committed" cat /root/mark
pass "commit, and a sandbox from it"

for sandbox in "$a" "$b" "$c" "$d"; do
  run sandbox rm "$sandbox"
done
[ -z "$(id sandbox ls)" ] || fail "sandboxes are left: $(id sandbox ls)"
run snapshot rm "$snap"
run template rm box-committed
run template rm box
[ -z "$(id template ls)$(id snapshot ls)" ] || fail "templates or snapshots are left"
pass "everything removed"

run gc
run fsck
pass "gc and fsck"

kill -TERM "$server"
wait "$server" || fail "the server ended with status $?"
server=
left=$(hypervisors)
[ "$engine" = qemu ] || left+=$(pgrep -x firecracker || true) # there are no others where it is tried
[ -z "$left" ] || fail "processes are left: $left"
pass "the server ends and leaves no process"
