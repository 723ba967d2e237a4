# $1: the domain. Traefik keeps what it was issued in its store; what an authority or a DNS provider refuses is in its log.
store=/opt/preview-proxy/acme/acme.json
container=preview-traefik
issued() { grep -qsF "\"main\": \"*.$1\"" "$store" || grep -qsF "\"main\":\"*.$1\"" "$store"; }
started() { date -d "$(docker inspect --format '{{.State.StartedAt}}' "$container")" +%s; }
refusal() { docker logs "$container" --since "$since" 2>&1 | grep -F 'nable to obtain ACME certificate' | tail -n 1; }
check() { issued "$1" || differs "no certificate for *.$1 has been issued yet"; }
apply() {
  since=$(started)
  # One that was refused before is ordered again when Traefik starts, and only then.
  if [ $(($(date +%s) - since)) -gt 120 ] && [ -n "$(refusal)" ]; then
    since=$(date +%s)
    docker restart "$container" >/dev/null
  fi
  echo "waiting for the certificate of *.$1"
  for _ in $(seq 90); do
    ! issued "$1" || return 0
    said=$(refusal)
    [ -z "$said" ] || fail "the certificate of *.$1 was not issued. Traefik's log: $said"
    sleep 2
  done
  fail "the certificate of *.$1 has not been issued within 180 s, and Traefik has not said why: docker logs $container. It goes on trying; run this again to see"
}
