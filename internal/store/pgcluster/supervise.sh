# Keeps one PostgreSQL server for the process that holds the other end of standard input, and ends with it, however
# that ends. Arguments: the directory of the cluster, the server's program. Orders come as lines; each is answered.
dir=$1
program=$2
pid=

end() { # with this signal
  [ -n "$pid" ] || return 0
  kill -s "$1" "$pid"
  wait "$pid"
  pid=
}

while read -r order; do
  case $order in
    start) "$program" -D "$dir/data" </dev/null >>"$dir/log" 2>&1 & pid=$! ;;
    fast) end INT ;;       # sessions are told
    immediate) end QUIT ;; # as in a crash
  esac
  echo "$order"
done
end QUIT
rm -rf -- "$dir"
