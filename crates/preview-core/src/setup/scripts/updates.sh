check() { have unattended-upgrade || differs "unattended-upgrades is not installed"; }
apply() { packages unattended-upgrades; }
