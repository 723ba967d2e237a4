# $1 the user; then public keys, each `type base64`
home() { getent passwd "$1" | cut -d : -f 6; }
# Options in front of a key may forbid what a deploy needs.
bound() { has_key "$1" "$2" && ! sed 's/^[[:space:]]*//' "$(home "$1")/.ssh/authorized_keys" | awk -v key="$2" 'index($0, key) == 1 { found = 1 } END { exit !found }'; }
has_key() { grep -v '^[[:space:]]*#' "$(home "$1")/.ssh/authorized_keys" 2>/dev/null | grep -qF -e "$2"; }
check() {
  if ! id "$1" >/dev/null 2>&1; then differs "there is no user $1"; return; fi
  id -nG "$1" | tr ' ' '\n' | grep -qx docker || differs "$1 is not in the group docker"
  user=$1
  shift
  [ $# -gt 0 ] || [ -s "$(home "$user")/.ssh/authorized_keys" ] || note "nobody can log in as $user yet: give a public key with --deploy-key"
  for key; do has_key "$user" "$key" || differs "$user lacks the key ${key%% *} …$(printf %s "$key" | tail -c 12)"; done
  for key; do ! bound "$user" "$key" || note "the key ${key%% *} …$(printf %s "$key" | tail -c 12) has options in authorized_keys: a deploy needs a shell and forwarding"; done
}
apply() {
  getent group docker >/dev/null || groupadd --system docker
  id "$1" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash "$1"
  # No password, and not locked either: a locked account may be refused with a key too.
  case $(getent shadow "$1" | cut -d : -f 2) in '!'*) usermod --password '*' "$1" ;; esac
  usermod --append --groups docker "$1"
  user=$1 group=$(id -gn "$1") ssh=$(home "$1")/.ssh
  shift
  install -d -m 0700 -o "$user" -g "$group" "$ssh"
  touch "$ssh/authorized_keys"
  chown "$user:$group" "$ssh/authorized_keys"
  chmod 0600 "$ssh/authorized_keys"
  # A last line without an end would swallow the first key.
  [ -z "$(tail -c 1 "$ssh/authorized_keys")" ] || echo >>"$ssh/authorized_keys"
  for key; do has_key "$user" "$key" || printf '%s\n' "$key" >>"$ssh/authorized_keys"; done
}
