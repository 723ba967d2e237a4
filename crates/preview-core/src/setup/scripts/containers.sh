# $@, each in one argument: networks as `network NAME WORD…`, containers as `container NAME HASH IMAGE`, the files of a directory as `only DIRECTORY NAME…`;
# what is not wanted: `gone NAME` for a container, `unused FILE`; `stays NAME FLAG SECRET` for a container that nobody asked for; `unknown FILE` if that may name a certificate
others() {
  directory=$1
  shift
  for file in "$directory"/*; do
    case " $* " in *" ${file##*/} "*) ;; *) [ ! -f "$file" ] || echo "$file" ;; esac
  done
}
there() { docker inspect "$1" >/dev/null 2>&1; }
running() { [ "$(docker inspect --format '{{.State.Running}} {{index .Config.Labels "preview.setup.hash"}}' "$1" 2>/dev/null)" = "true $2" ]; }
# An engine whose socket was made anew leaves a container that lived on with the old one.
sees() {
  case $1 in *-socket-proxy) ;; *) return 0 ;; esac
  inside=$(docker exec "$1" stat -c %i /var/run/docker.sock 2>/dev/null) || return 0
  [ "$inside" = "$(stat -L -c %i /var/run/docker.sock)" ]
}
# What leads to some of these addresses already; Docker looks at its own networks only.
taken() {
  have ip || return 0
  ip -4 route show table all to root "$1"
  ip -4 route show table all to match "$1" | grep -v '^default' || :
}
check() {
  docker version >/dev/null 2>&1 || { differs "no Docker Engine answers"; return; }
  for item; do
    set -- $item
    case $1 in
      network)
        if ! size=$(docker network inspect --format '{{range .IPAM.Config}}{{.Subnet}} {{end}}' "$2" 2>/dev/null); then
          differs "the network $2 is missing"
        elif [ "${3:-}" = --subnet ]; then
          size=$(echo "$size" | sed -n 's|^[0-9.]*/\([0-9]*\).*|\1|p')
          [ "${size:-0}" -le 22 ] || note "the network $2 has room for $(((1 << (32 - size)) - 3)) containers, and each routed one takes a place: docs/vm-setup.md says how to make it larger"
        fi
        ;;
      container)
        running "$2" "$3" || differs "the container $2 does not run, or not as wanted"
        sees "$2" || differs "the container $2 has a socket of the engine that nobody listens on any more"
        ! there "$2-before" || differs "the container $2-before is left of an update that broke off"
        ;;
      only)
        shift
        [ -z "$(others "$@")" ] || differs "$1 holds files of before"
        ;;
      gone) ! there "$2" || differs "the container $2 is still there" ;;
      unused) [ ! -e "$2" ] || differs "$2 is there, and nothing uses it" ;;
      stays)
        if there "$2"; then note "the container $2 is of an earlier run and stays as it is; $3 removes it"; else [ ! -e "$4" ] || differs "$4 is there, and nothing uses it"; fi
        ;;
      unknown) ! grep -qs '^  stores:' "$2" || skip "the proxy has a certificate by now, which this knows nothing of" ;;
    esac
  done
}
apply() {
  service daemon-reload
  for item; do
    set -- $item
    case $1 in
      network)
        shift
        name=$1
        shift
        if ! docker network inspect "$name" >/dev/null 2>&1; then
          [ "${1:-}" != --subnet ] || [ -z "$(taken "$2")" ] || fail "the addresses $2, for the network $name, are in use: $(taken "$2" | head -n 1). Give others with --proxy-subnet"
          docker network create --label preview.setup=proxy "$@" "$name"
        fi
        ;;
      container)
        if there "$2-before" || ! running "$2" "$3"; then replace "$2" "$3" "$4"; fi
        sees "$2" || docker restart "$2" >/dev/null
        ;;
      only)
        shift
        # Whoever reads them has heard of the new ones by then.
        [ -z "$(others "$@")" ] || sleep 3
        others "$@" | while IFS= read -r file; do rm -f "$file"; done
        ;;
      gone)
        if there "$2"; then
          ours "$2"
          docker rm -f "$2" >/dev/null
        fi
        ;;
      unused) rm -f "$2" ;;
      stays) there "$2" || rm -f "$4" ;;
    esac
  done
}
# Only what this step made is ever removed.
ours() { [ -n "$(docker inspect --format '{{index .Config.Labels "preview.setup"}}' "$1")" ] || fail "a container $1 is there that this command did not make: rename or remove it"; }
stays() {
  for _ in $(seq 30); do ! running "$1" "$2" || break; sleep 1; done
  sleep 2
  running "$1" "$2" && [ "$(docker inspect --format '{{.RestartCount}}' "$1")" = 0 ]
}
# The old container goes only when the new one has stayed up: an image that is not to be had must not take the way in to all previews.
replace() {
  before=$1-before
  ! there "$1" || ours "$1"
  if there "$before"; then
    ours "$before"
    if running "$1" "$2"; then
      docker rm -f "$before" >/dev/null
      return
    fi
    ! there "$1" || docker rm -f "$1" >/dev/null
    docker rename "$before" "$1"
  fi
  docker image inspect "$3" >/dev/null 2>&1 || docker pull -q "$3" || fail "the image $3 of $1 cannot be had; what ran before goes on"
  if ! there "$1"; then
    sh "/opt/preview-proxy/run/$1" "$2"
    stays "$1" "$2" || { docker logs --tail 15 "$1" 2>&1; fail "the container $1 does not stay up"; }
    return
  fi
  docker stop "$1" >/dev/null
  docker rename "$1" "$before"
  if sh "/opt/preview-proxy/run/$1" "$2" && stays "$1" "$2"; then
    docker rm -f "$before" >/dev/null
    return
  fi
  docker logs --tail 15 "$1" 2>&1 || :
  docker rm -f "$1" >/dev/null 2>&1 || :
  if ! docker rename "$before" "$1" || ! docker start "$1" >/dev/null; then fail "the new container $1 does not stay up, and the old one does not start either"; fi
  fail "the new container $1 does not stay up; the old one was started again"
}
