# What all steps use. A step says what differs with `differs`, what to know with `note`, and that it does not apply here with `skip`.
export LC_ALL=C DEBIAN_FRONTEND=noninteractive PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 022
wrong=0
differs() { wrong=1; echo "$*"; }
note() { echo "$*"; }
skip() { echo "$*"; exit 77; }
fail() { echo "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
in_container() {
  [ ! -e /.dockerenv ] && [ ! -e /run/.containerenv ] || return 0
  have systemd-detect-virt && systemd-detect-virt --quiet --container
}
apt_get() { apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold "$@"; }
# Apt-get waits for the lock of the packages, and not for that of the lists, which a new machine's own update holds.
lists() {
  for _ in $(seq 60); do
    ! said=$(apt_get update 2>&1) || return 0
    case $said in *"not get lock"* | *"nable to lock"*) sleep 5 ;; *) break ;; esac
  done
  printf '%s\n' "$said"
  return 1
}
dpkg_updates=/var/lib/dpkg/updates
# Into a file first: a connection that breaks must not end dpkg in the middle of its work.
install_packages() {
  told=$(mktemp)
  status=0
  # Where somebody else ended it there, nothing can be installed before this. If dpkg is at work, it refuses, and apt-get waits.
  [ -z "$(ls "$dpkg_updates" 2>/dev/null | grep '^[0-9]')" ] || dpkg --force-confold --configure -a >"$told" 2>&1 || :
  apt_get install -y --no-install-recommends "$@" >>"$told" 2>&1 || status=$?
  cat "$told"
  rm -f "$told"
  return $status
}
# The lists are asked for only where a package is not known yet.
packages() {
  install_packages "$@" && return
  lists && install_packages "$@"
}
# One at a time: two that change the same would each undo half of the other's. For as long as the shell lives that asks.
alone() {
  umask 077
  exec 9>>"${PREVIEW_SETUP_LOCK:-/run/preview-setup.lock}"
  umask 022
  waited=
  flock -n 9 && return
  waited=yes
  echo "another setup of this machine is at work: waiting for its end"
  flock -w 600 9 || fail "it does not end: look there (/var/log/preview-setup.log for a server's own at its first start), then try again"
}
# Whether systemd runs the machine: nobody else has timers.
booted() { [ -d /run/systemd/system ]; }
service() { systemctl "$@" || fail "systemctl $* failed; its own words: journalctl -n 30"; }
hash_of() { sha256sum <"$1" | cut -c 1-64; }
# look PATH MODE SHA256: says what is not as wanted.
look() {
  if [ ! -f "$1" ]; then differs "$1 is missing"; return; fi
  [ "$(hash_of "$1")" = "$3" ] || differs "$1 has another content"
  [ "$(stat -c '%a %U' "$1")" = "$2 root" ] || differs "$1 has another mode or owner: $(stat -c '%a %U' "$1") instead of $2 root"
}
# put PATH MODE: standard input becomes the file, at once.
put() {
  mkdir -p "${1%/*}"
  new=$(mktemp "${1%/*}/.new.XXXXXX")
  cat >"$new"
  chmod "$2" "$new"
  mv -f "$new" "$1"
}
# directory PATH MODE OWNER: says what is not as wanted.
directory() {
  if [ ! -d "$1" ]; then differs "$1 is missing"; return; fi
  [ "$(stat -c '%a %U' "$1")" = "$2 $3" ] || differs "$1 has another mode or owner: $(stat -c '%a %U' "$1") instead of $2 $3"
}
