# $1 the user that may write numbers
settings=/etc/default/prometheus-node-exporter
numbers=/var/lib/prometheus/node-exporter
ours="--web.listen-address=127.0.0.1:9100 --collector.textfile.directory=$numbers"
check() {
  have prometheus-node-exporter || { differs "it is not installed"; return; }
  grep -qs -e "^ARGS=.*$ours" "$settings" || differs "it does not listen on 127.0.0.1 only"
  [ "$(stat -c '%A' "$numbers" 2>/dev/null | cut -c 6)" = w ] && [ "$(stat -c %G "$numbers")" = "$(id -gn "$1")" ] || differs "$1 cannot write numbers into $numbers"
  systemctl is-active prometheus-node-exporter >/dev/null 2>&1 || differs "it does not run"
}
apply() {
  have prometheus-node-exporter || packages prometheus-node-exporter
  install -d -m 2775 -g "$(id -gn "$1")" "$numbers"
  touch "$settings"
  # Other arguments of yours stay.
  rest=$(sed -n 's/^ARGS="\(.*\)"$/\1/p' "$settings" | tail -n 1 | tr ' ' '\n' | grep -v -e '^--web.listen-address=' -e '^--collector.textfile.directory=' | tr '\n' ' ')
  { grep -v '^ARGS=' "$settings" || :; printf 'ARGS="%s %s"\n' "$ours" "${rest% }" | sed 's/ "$/"/'; } | put "$settings" 644
  service enable prometheus-node-exporter
  service restart prometheus-node-exporter
}
