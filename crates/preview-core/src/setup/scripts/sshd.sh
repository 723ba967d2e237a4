# $1 `keys` if passwords are to be refused; else `any`
check() {
  if ! told=$(sshd -T 2>&1); then differs "sshd does not accept its own configuration: $(printf %s "$told" | tail -n 1)"; return; fi
  value() { printf '%s\n' "$told" | sed -n "s/^$1 //p" | head -n 1; }
  [ "$(value maxsessions)" -ge 64 ] || differs "MaxSessions is $(value maxsessions), wanted 64"
  startups=$(value maxstartups)
  [ "${startups%%:*}" -ge 100 ] || differs "MaxStartups is $startups, wanted 100:30:200"
  [ "$1" != keys ] || [ "$(value passwordauthentication)" = no ] || differs "passwords are accepted"
}
apply() {
  if ! said=$(sshd -t 2>&1); then rm -f /etc/ssh/sshd_config.d/00-preview.conf; fail "sshd would not start with it: $said"; fi
  # Sessions that are open stay open.
  if systemctl is-active --quiet ssh 2>/dev/null; then systemctl reload ssh; elif [ -s /run/sshd.pid ]; then kill -HUP "$(cat /run/sshd.pid)"; fi
}
undo() {
  rm -f /etc/ssh/sshd_config.d/00-preview.conf
  apply
}
