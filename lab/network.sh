#!/bin/bash
# Sandboxes in isolated networks: what they may reach and what not, clones side by side, after a rollback, and one beside them in mode
# user; and that nothing is left of them. The engine is QEMU, or the Firecracker that the name of this file ends with.
set -euo pipefail

spore=/cargo/spore
engine=(--engine qemu)
case ${0##*/} in
*-network-*) engine=(--engine firecracker --firecracker-dir "/cargo/vmms/${0##*-network-}") ;;
esac
data=$(mktemp -d -p "${TMPDIR:-/var/tmp}" spore-network.XXXXXX)
export SPORE_DATA=$data
server= httpd=

finish() {
  status=$?
  trap - EXIT
  [ -z "$server" ] || { kill -TERM "$server" && wait "$server" || true; }
  [ -z "$httpd" ] || kill "$httpd"
  [ "$status" -eq 0 ] || tail -n 60 "$data.log"
  "$spore" doctor --clean --sandboxes
  busybox ip link del lab0 || true
  rm -rf "$data" "$data.log" "$data.www" "$data.silence"
  exit "$status"
}
trap finish EXIT
fail() {
  echo "FAIL $*"
  exit 1
}
# hears expects what a sandbox gets from the host's server: its page, or nothing.
hears() {
  local sandbox=$1 want=$2 got
  got=$("$spore" sandbox exec "$sandbox" -- sh -c \
    '(printf "GET /page HTTP/1.0\r\n\r\n"; sleep 3) | nc -w 20 203.0.113.1 8000 2>/dev/null | grep "a page" || echo nothing' </dev/null)
  [ "$got" = "$want" ] || fail "$sandbox hears '$got', not '$want': $3"
  echo "PASS $3"
}

# moves has a sandbox fetch a file from the host and send it back, and looks whether it is the same each time.
moves() {
  local sandbox=$1 what=$2 sum
  sum=$(md5sum <"$data.www/bulk")
  # It hangs up for good when it has nothing to say any more: so it never knows.
  [ -e "$data.silence" ] || mkfifo "$data.silence"
  busybox nc -l -p 8001 >"$data.www/back" <>"$data.silence" &
  local listener=$!
  [ "$("$spore" sandbox exec "$sandbox" -- sh -c \
    'cd /tmp && wget -q -O bulk http://203.0.113.1:8000/bulk && md5sum <bulk && nc -w 20 203.0.113.1 8001 <bulk' </dev/null)" = "$sum" ] ||
    fail "$sandbox did not fetch what is there: $what"
  wait "$listener" || true
  [ "$(md5sum <"$data.www/back")" = "$sum" ] || fail "what $sandbox sent did not arrive: $what"
  echo "PASS $what"
}

# An address of the host that guests may reach only when it is named, with a server on it.
busybox ip link add lab0 type dummy
busybox ip addr add 203.0.113.1/24 dev lab0
busybox ip link set lab0 up
mkdir "$data.www"
echo "a page" >"$data.www/page"
head -c 1048576 /dev/urandom >"$data.www/bulk"
busybox httpd -f -p 203.0.113.1:8000 -h "$data.www" &
httpd=$!

"$spore" serve --listen 127.0.0.1:0 "${engine[@]}" >"$data.log" 2>&1 </dev/null &
server=$!
for _ in $(seq 600); do
  "$spore" template ls >/dev/null 2>&1 && break
  kill -0 "$server" 2>/dev/null || fail "the server ended"
  sleep 0.1
done
"$spore" kernel install --kernel /cargo/vmlinuz --modules "/lib/modules/$(uname -r)" >/dev/null
"$spore" template build net --image oci:/cargo/image:latest --network isolated >/dev/null
a=$("$spore" sandbox create net -q --allow-cidr 203.0.113.1 --net-out-mbps 50 --cpus 0.9 -p 8080)
hears "$a" "a page" "an address that is allowed"
b=$("$spore" sandbox create net -q)
hears "$b" nothing "an address of the host that is not"
snap=$("$spore" snapshot create "$a" -q)
hears "$a" "a page" "after a snapshot"
c=$("$spore" fork "$snap" -q)
"$spore" sandbox set "$c" --allow-cidr 203.0.113.1 >/dev/null
hears "$c" "a page" "a clone beside it, allowed while it runs"
"$spore" sandbox set "$a" --allow-cidr none >/dev/null
hears "$a" nothing "no more allowed"
"$spore" rollback "$a" "$snap" >/dev/null
"$spore" sandbox set "$a" --allow-cidr 203.0.113.1 >/dev/null
hears "$a" "a page" "after a rollback"
u=$("$spore" fork "$snap" -q --network user --allow-cidr 203.0.113.1)
moves "$u" "1 MiB there and back in mode user"
kill -KILL "$server"
wait "$server" || true
server=
[ -z "$("$spore" doctor --clean -q)" ] || echo "what the dead server kept ready is gone"
"$spore" serve --listen 127.0.0.1:0 "${engine[@]}" >>"$data.log" 2>&1 </dev/null &
server=$!
for _ in $(seq 600); do
  "$spore" template ls >/dev/null 2>&1 && break
  sleep 0.1
done
hears "$a" "a page" "after the server was killed"
hears "$u" "a page" "in mode user as well"
"$spore" sandbox set "$u" --allow-cidr none >/dev/null
hears "$u" nothing "no more allowed in mode user"
"$spore" sandbox rm "$a" "$b" "$c" "$u" >/dev/null
kill -TERM "$server"
wait "$server"
server=
[ -z "$("$spore" doctor --clean -q)" ] || fail "something is left"
[ -z "$(find "$data/vms" -name net.json)" ] || fail "network processes are left"
[ -z "$(ls /run/netns 2>/dev/null)" ] || fail "namespaces are left: $(ls /run/netns)"
echo "PASS nothing is left"
