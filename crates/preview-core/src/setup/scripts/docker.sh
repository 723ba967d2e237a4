# $1 where from: `docker.io`, the distribution's own package, or `docker-ce`, Docker's
api() { docker version --format '{{.Server.APIVersion}}' 2>/dev/null; }
check() {
  if ! have docker || ! version=$(api); then differs "no Docker Engine answers"; return; fi
  [ "${version#*.}" -ge 41 ] || differs "the engine is too old: API $version, wanted 1.41 (Docker 20.10)"
}
apply() {
  if have docker && version=$(api); then
    fail "an engine is there and too old (API $version); its upgrade ends containers, so it stays yours to do"
  fi
  [ ! -e /snap/bin/docker ] || fail "Docker is there as a snap, and another engine beside it would hide its containers: remove that, or have it answer on /run/docker.sock with \`docker\` in /usr/local/bin"
  if ! have dockerd; then
    case $1 in
      docker.io) distribution ;;
      docker-ce) dockers_own ;;
    esac
  fi
  service daemon-reload
  service enable docker
  service start docker
  for _ in $(seq 60); do ! api >/dev/null || return 0; sleep 1; done
  fail "the engine does not answer within 60 s; its own words: journalctl -u docker -n 30"
}
# Where AppArmor is on, containers are confined by it only if its tools are there.
apparmor() { if grep -qs Y /sys/module/apparmor/parameters/enabled; then echo apparmor; fi; }
distribution() {
  apt-cache show docker.io >/dev/null 2>&1 || lists
  cli=
  # Newer suites have the command in a package of its own.
  if apt-cache show docker-cli >/dev/null 2>&1; then cli=docker-cli; fi
  packages docker.io $cli iptables ca-certificates $(apparmor)
}
dockers_own() {
  packages ca-certificates curl gpg
  . /etc/os-release
  new=$(mktemp)
  curl -fsSL --proto '=https' --max-time 60 -o "$new" "https://download.docker.com/linux/$ID/gpg"
  # The key that Docker's documentation names; another one is not trusted, whoever serves it.
  found=$(gpg --batch --quiet --show-keys --with-colons "$new" | awk -F: '$1 == "pub" { next_is = 1 } $1 == "fpr" && next_is { print $10; next_is = 0 }')
  [ "$found" = 9DC858229FC7DD38854AE2D88D81803C0EBFCD88 ] || fail "the repository's key is another one than Docker's: ${found:-none}"
  put /etc/apt/keyrings/docker.asc 644 <"$new"
  rm -f "$new"
  put /etc/apt/sources.list.d/docker.list 644 <<LIST
deb [arch=$(dpkg --print-architecture) signed-by=/etc/apt/keyrings/docker.asc] https://download.docker.com/linux/$ID $VERSION_CODENAME stable
LIST
  lists
  packages docker-ce docker-ce-cli containerd.io $(apparmor)
}
