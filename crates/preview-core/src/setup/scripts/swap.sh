# $1 the size in MiB; $2 swappiness
swap=/swapfile refused=/etc/preview/swap-refused
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
    [ ! -e "$refused" ] || skip "this file system or kernel refused swap; to try again, remove $refused"
    if [ "$(size "$1")" -lt 256 ]; then note "the disk has no room for swap"; else differs "there is no swap; $(size "$1") MiB will be made"; fi
  fi
  [ "$(sysctl -n vm.swappiness)" = "$2" ] || differs "vm.swappiness is $(sysctl -n vm.swappiness)"
}
apply() {
  if ! active && [ ! -e "$refused" ] && [ "$(size "$1")" -ge 256 ]; then
    rm -f "$swap"
    # Btrfs takes no other file.
    (umask 077 && : >"$swap")
    chattr +C "$swap" 2>/dev/null || :
    # Blocks are written: some file systems refuse swap on a file with holes.
    dd if=/dev/zero of="$swap" bs=1M count="$(size "$1")" status=none
    mkswap "$swap" >/dev/null
    if swapon "$swap"; then
      # A last line without an end would swallow it.
      [ -z "$(tail -c 1 /etc/fstab)" ] || echo >>/etc/fstab
      grep -q "^$swap[[:space:]]" /etc/fstab || printf '%s none swap sw 0 0\n' "$swap" >>/etc/fstab
    else
      # Nothing else needs it: a machine without swap is still one for previews.
      rm -f "$swap"
      echo "this file system or kernel refuses swap: there is none"
      echo "$(date -u +%Y-%m-%d)" | put "$refused" 644
    fi
  fi
  sysctl -q -p /etc/sysctl.d/60-preview.conf
}
