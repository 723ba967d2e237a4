# Makes an authority (ca), certificates by it with the key good.key, and some that signed themselves.
set -eu
ec() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.ec"; openssl pkcs8 -topk8 -nocrypt -in "$1.ec" -out "$1.key"; }
for name in ca good other; do ec "$name"; done
openssl pkcs8 -topk8 -in good.ec -passout pass:secret -out locked.key
: >empty.key
: >empty.pem
cat >openssl.cnf <<'CONFIG'
[ca]
default_ca = own
[own]
database = index.txt
serial = serial
new_certs_dir = .
certificate = ca.pem
private_key = ca.key
default_md = sha256
policy = any
copy_extensions = copy
unique_subject = no
[any]
commonName = supplied
[req]
distinguished_name = name
[name]
[server]
basicConstraints = CA:FALSE
[authority]
basicConstraints = critical,CA:TRUE
CONFIG
: >index.txt
echo 01 >serial
openssl req -new -x509 -config openssl.cnf -key ca.key -subj /CN=authority -days 3650 -extensions authority -out ca.pem
# signed NAME HOSTS BEGIN END
signed() {
  openssl req -new -config openssl.cnf -key good.key -subj /CN=server -addext "subjectAltName=$2" -out "$1.csr"
  openssl ca -batch -notext -config openssl.cnf -extensions server -startdate "$3" -enddate "$4" -in "$1.csr" -out "$1.pem" 2>"$1.log" ||
    { cat "$1.log" >&2; exit 1; }
}
day() { date -u -d "$1" +%Y%m%d%H%M%SZ; }
signed good 'DNS:*.preview.test,DNS:preview.test' "$(day '-1 day')" "$(day '+90 days')"
signed soon 'DNS:*.preview.test' "$(day '-1 day')" "$(day '+5 days')"
signed elsewhere 'DNS:*.other.test' "$(day '-1 day')" "$(day '+90 days')"
signed expired 'DNS:*.preview.test' "$(day '-90 days')" "$(day '-1 day')"
signed early 'DNS:*.preview.test' "$(day '+2 days')" "$(day '+90 days')"
itself() { openssl req -new -x509 -config openssl.cnf -key good.key -subj /CN=server -addext 'subjectAltName=DNS:*.preview.test' -days 90 -extensions "$2" -out "$1.pem"; }
itself itself server
itself itself-ca authority
