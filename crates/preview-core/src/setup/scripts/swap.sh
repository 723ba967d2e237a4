# $1 the size in MiB; $2 swappiness
swap=/swapfile
active() { awk 'NR > 1' /proc/swaps | grep -q .; }
# A quarter of what is free at most, in MiB.
size() {
  room=$(($(df -Pk / | awk 'NR == 2 { print $4 }') / 4096))
  if [ "$room" -lt "$1" ]; then echo "$room"; else echo "$1"; fi
}
check() {
  ! in_container || skip "a container has no swap of its own"
  [ -e /proc/swaps ] || skip "this kernel has no swap"
  if ! active; then
    if [ "$(size "$1")" -lt 256 ]; then note "the disk has no room for swap"; else differs "there is no swap; $(size "$1") MiB will be made"; fi
  fi
  [ "$(sysctl -n vm.swappiness)" = "$2" ] || differs "vm.swappiness is $(sysctl -n vm.swappiness)"
}
apply() {
  if ! active && [ "$(size "$1")" -ge 256 ]; then
    # Blocks are written: some file systems refuse swap on a file with holes.
    rm -f "$swap"
    (umask 077 && dd if=/dev/zero of="$swap" bs=1M count="$(size "$1")" status=none)
    mkswap "$swap" >/dev/null
    swapon "$swap" || { rm -f "$swap"; fail "this file system or kernel refuses swap; leave it out with --skip swap"; }
    grep -q "^$swap " /etc/fstab || printf '%s none swap sw 0 0\n' "$swap" >>/etc/fstab
  fi
  sysctl -q -p /etc/sysctl.d/60-preview.conf
}
