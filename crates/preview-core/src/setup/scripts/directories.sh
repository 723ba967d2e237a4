# $1 the user; $2 the directory of the previews; $3 the proxy's directory
check() {
  id "$1" >/dev/null 2>&1 || { differs "there is no user $1"; return; }
  directory "$2" 700 "$1"
  directory "$3" 755 root
  directory "$2/.pages" 755 "$1"
}
apply() {
  group=$(id -gn "$1")
  install -d -m 0700 -o "$1" -g "$group" "$2"
  install -d -m 0755 -o root -g root "$3"
  install -d -m 0755 -o "$1" -g "$group" "$2/.pages"
}
