# $@ networks as `network NAME WORD…`, containers as `container NAME HASH`, the files of a directory as `only DIRECTORY NAME…`; each in one argument
others() {
  directory=$1
  shift
  for file in "$directory"/*; do
    case " $* " in *" ${file##*/} "*) ;; *) [ ! -f "$file" ] || echo "$file" ;; esac
  done
}
running() { [ "$(docker inspect --format '{{.State.Running}} {{index .Config.Labels "preview.setup.hash"}}' "$1" 2>/dev/null)" = "true $2" ]; }
check() {
  docker version >/dev/null 2>&1 || { differs "no Docker Engine answers"; return; }
  for item; do
    set -- $item
    case $1 in
      network) docker network inspect "$2" >/dev/null 2>&1 || differs "the network $2 is missing" ;;
      container) running "$2" "$3" || differs "the container $2 does not run, or not as wanted" ;;
      only)
        shift
        [ -z "$(others "$@")" ] || differs "$1 holds files of before"
        ;;
    esac
  done
}
apply() {
  for item; do
    set -- $item
    case $1 in
      network)
        shift
        name=$1
        shift
        docker network inspect "$name" >/dev/null 2>&1 || docker network create --label preview.setup=proxy "$@" "$name"
        ;;
      container)
        running "$2" "$3" || replace "$2" "$3"
        ;;
      only)
        shift
        # Whoever reads them has heard of the new ones by then.
        [ -z "$(others "$@")" ] || sleep 3
        others "$@" | while IFS= read -r file; do rm -f "$file"; done
        ;;
    esac
  done
}
# Only what this step made is ever removed.
replace() {
  if docker inspect "$1" >/dev/null 2>&1; then
    [ -n "$(docker inspect --format '{{index .Config.Labels "preview.setup"}}' "$1")" ] || fail "a container $1 is there that this command did not make: rename or remove it"
    docker rm -f "$1" >/dev/null
  fi
  sh "/opt/preview-proxy/run/$1" "$2"
  for _ in $(seq 30); do ! running "$1" "$2" || break; sleep 1; done
  sleep 2
  if ! running "$1" "$2" || [ "$(docker inspect --format '{{.RestartCount}}' "$1")" != 0 ]; then
    docker logs --tail 15 "$1" 2>&1
    fail "the container $1 does not stay up"
  fi
}
