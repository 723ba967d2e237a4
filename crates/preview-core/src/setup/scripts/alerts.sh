check() {
  have curl || differs "curl is not installed"
  systemctl is-enabled preview-alerts.timer >/dev/null 2>&1 || differs "the timer is off"
  ! booted || systemctl is-active preview-alerts.timer >/dev/null 2>&1 || differs "the timer does not run"
}
apply() {
  have curl || packages curl ca-certificates
  service daemon-reload
  service enable preview-alerts.timer
  ! booted || service start preview-alerts.timer
}
