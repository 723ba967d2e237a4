# $@ ports that are open beside those of sshd
table='inet preview_firewall'
check() {
  have nft || differs "nftables is not installed"
  if ! rules=$(nft list table $table 2>/dev/null); then differs "every port is open"; return; fi
  [ -x /usr/local/lib/preview/firewall ] || return 0
  printf '%s\n' "$rules" | grep -qF "\"ports $(/usr/local/lib/preview/firewall name)\"" || differs "other ports are open than wanted, or other rules loaded"
  systemctl is-enabled preview-firewall >/dev/null 2>&1 || differs "it does not come back after a reboot"
  ! ufw_active || note "ufw is active too and stays so: a port is open only if both let it through"
}
ufw_active() { have ufw && ufw status 2>/dev/null | grep -q '^Status: active'; }
apply() {
  have nft || packages nftables
  # The port of this very connection stays open, whatever sshd says about itself.
  mine=$(printf '%s\n' "${SSH_CONNECTION:-}" | awk '{ print $4 }')
  echo "$mine" >/etc/preview/firewall.connection
  service daemon-reload
  service enable preview-firewall
  # Where it runs, without a moment in which everything is open.
  if systemctl is-active preview-firewall >/dev/null 2>&1; then /usr/local/lib/preview/firewall; else service restart preview-firewall; fi
}
# Everything that could load the rules again goes: the next reload of sshd or the next boot would close the door once more.
undo() {
  systemctl disable --now preview-firewall || :
  for unit in ssh.service ssh.socket docker.service; do rm -f "/etc/systemd/system/$unit.d/preview-firewall.conf"; done
  rm -f /etc/systemd/system/preview-firewall.service /usr/local/lib/preview/firewall
  systemctl daemon-reload || :
  nft delete table $table 2>/dev/null || :
}
