# Holds a lock until it is released, its connection ends, or no heartbeat comes for the time to live.
# $1 the lock's file, $2 the holder as JSON, $3 the time to live in seconds.
LC_ALL=C; export LC_ALL; umask 077
lock=$1 json=$2 ttl=$3
command -v flock >/dev/null || { echo 'flock: not found' >&2; exit 1; }
command -v timeout >/dev/null || { echo 'timeout: not found' >&2; exit 1; }
# `read -t` is not POSIX: bash and busybox have it, dash does not.
if ( echo x | read -r -t 1 x ) 2>/dev/null; then
  hear() { IFS= read -r -t "$ttl" line; }
else
  hear() { line=$(timeout "$ttl" sh -c 'IFS= read -r line && printf %s "$line"' 9>&-); }
fi
# The lines up to a mark.
take() { timeout "$ttl" sh -c 'while IFS= read -r l; do if [ "$l" = "$1" ]; then exit 0; fi; printf "%s\n" "$l"; done; exit 1' sh "$1" 9>&-; }
same() { [ "$lock" -ef /proc/self/fd/9 ]; }
reopen() {
  for again in 1 2 3 4 5; do
    [ -d "${lock%/*}" ] || mkdir -p "${lock%/*}" || continue
    if command exec 9<>"$lock"; then return 0; fi
  done
  return 1
}
# Its last holder may have removed the file: then the descriptor locks what nobody else sees.
attempt() {
  while :; do
    same 2>/dev/null || reopen || exit 1
    "$@" || return 1
    if same; then return 0; fi
  done
}
# Seconds since the machine started: no clock that somebody sets.
clock() { IFS=' .' read -r now rest </proc/uptime || now=0; }
# What the silent holder asked for over this connection must not outlive its lock. A parent that is no `sshd` is left alone.
hang_up() {
  clock
  [ $((now - heard)) -ge $((ttl - 1)) ] || return 0
  grep -q "^PPid:[[:space:]]*$PPID\$" "/proc/$$/status" && IFS= read -r parent <"/proc/$PPID/comm" || return 0
  case $parent in sshd | sshd-session) kill "$PPID" ;; esac
}
got=
while hear; do
  case $line in
    try) attempt flock -n 9 && got=1 && break ;;
    # Somebody who asks for the holder has it for an instant; that is not "taken".
    once) attempt flock -n 9 && got=1 && break; sleep 0.2 2>/dev/null || sleep 1; attempt flock -n 9 && got=1 && break ;;
    wait) attempt timeout 1 flock 9 && got=1 && break ;;
    *) exit 1 ;;
  esac
  holder=
  { IFS= read -r holder <"$lock"; } 2>/dev/null
  printf 'busy %s\n' "$holder"
done
[ -n "$got" ] || exit 0
printf '%s\n' "$json" >/proc/self/fd/9
echo held
clock; heard=$now
while hear; do
  clock; heard=$now
  case $line in
    beat*) printf '%s\n' "$line" ;;
    release) : >/proc/self/fd/9; exec 9>&-; echo released; exit 0 ;;
    conclude*)
      mark=${line#* }
      changes=$(take "$mark") && after=$(take "$mark") || exit 1
      if said=$( { eval "$changes"; } 2>&1 </dev/null 9>&- ); then
        if same; then rm -f "$lock"; fi
        exec 9>&-
        ( eval "$after" ) >/dev/null 2>&1 </dev/null
        printf 'released %s\n' "$(printf %s "$said" | tr '\n' ' ')"
        exit 0
      fi
      printf 'failed %s\n' "$(printf %s "$said" | tr '\n' ' ')" ;;
    remove) if same; then rm -f "$lock"; fi; exec 9>&-; echo released; exit 0 ;;
    *) exit 1 ;;
  esac
done
hang_up 2>/dev/null
exit 0
