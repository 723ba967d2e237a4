# $1 the hash of the file that this was merged from, or `absent`; $2 the new content; $3 the log driver; $4 the address pools, as `docker info` shows them
file=/etc/docker/daemon.json
now() { if [ -e "$file" ]; then hash_of "$file"; else echo absent; fi; }
check() {
  if [ "$(now)" = absent ]; then differs "$file is missing"; return; fi
  [ "$(now)" = "$(printf '%s' "$2" | sha256sum | cut -c 1-64)" ] || differs "$file lacks some of our settings"
  runs=$(docker info --format '{{.LoggingDriver}} {{range .DefaultAddressPools}}{{.Base}}/{{.Size}} {{end}}' 2>/dev/null) || return 0
  case $runs in
    "$3 $4 ") ;;
    *) differs "the engine runs with older settings: it will be restarted" ;;
  esac
}
apply() {
  mkdir -p "${file%/*}"
  wrote= saved=
  if [ "$(now)" != "$(printf '%s' "$2" | sha256sum | cut -c 1-64)" ]; then
    [ "$(now)" = "$1" ] || fail "$file was changed by somebody else meanwhile, or is not the one that this was made for: run \`preview vm setup\` again"
    # A copy of this run alone: one of an earlier run may hold what nobody wants back.
    if [ "$1" != absent ]; then
      saved=$(mktemp "$file.before.XXXXXX")
      cp -p "$file" "$saved"
    fi
    wrote=yes
    printf '%s' "$2" | put "$file" 644
  fi
  if ! docker version >/dev/null 2>&1 || { systemctl restart docker && answers; }; then
    [ -z "$saved" ] || rm -f "$saved"
    return 0
  fi
  [ -n "$wrote" ] || fail "the engine did not start again; $file was as wanted before and stays. Its own words: journalctl -u docker -n 30"
  if [ -z "$saved" ]; then rm -f "$file"; else mv -f "$saved" "$file"; fi
  systemctl restart docker || :
  fail "the engine did not start with the new settings; the old ones are back. Its own words: journalctl -u docker -n 30"
}
answers() {
  for _ in $(seq 60); do ! docker version >/dev/null 2>&1 || return 0; sleep 1; done
  return 1
}
