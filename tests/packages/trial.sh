# The life of the package in a bare root, as root, without a network. test_deb.py makes the root and runs this.
# Each step says "good: WHAT"; the first that is wrong ends the trial.
set -eu
old=$1 new=$2
export DEBIAN_FRONTEND=noninteractive
fail() { echo "bad: $*"; tail -n 20 /root/veeryd.log 2>/dev/null || true; exit 1; }
good() { echo "good: $*"; }
answers() {
    for _ in $(seq 180); do
        timeout 20 veery node list >/root/nodes 2>/root/why && return 0
        sleep 1
    done
    fail "veeryd does not answer: $(cat /root/why)"
}
same() { # NAME PID: the process that it was
    [ "$(cat "/proc/$2/comm" 2>/dev/null)" = "$1" ] || fail "$1 ($2) has ended"
}
rest() { same etcd "$etcd"; same tgtd "$tgtd"; same qemu-system-x86 "$domain"; }
sums() { find "$@" -type f -exec sha256sum {} + | sort; }
# veeryd itself writes the other files of these folders anew, such as the list of revoked certificates.
held="/var/lib/veery/volumes /var/lib/veery/sealing.key"
install() { dpkg --install "$1" >/root/dpkg.log 2>&1 || fail "dpkg --install $1: $(tail -n 5 /root/dpkg.log)"; }

ip link set lo up
ip address add 10.9.0.1/32 dev lo
rm -f /usr/sbin/policy-rc.d
mkdir -p /run/systemd/system

[ "$(veery --version)" = "$(/usr/lib/veery/bin/veery --version)" ] || fail "two versions"
veeryd --version >/dev/null
grep -q '^veery-qemu:' /etc/passwd || fail "no user veery-qemu"
[ -L /etc/apparmor.d/disable/veery-qemu ] || fail "the AppArmor profile is not switched off"
find /usr/lib/veery/lib -name '*.pyc' | grep -q . || fail "nothing was compiled"
bash -n /usr/share/bash-completion/completions/veery
! grep -v '^#' /etc/veery/veery.toml | grep -q . || fail "a setting that is no comment"
good "installed"

veery init --name n1 --address 10.9.0.1 --roles voter,storage
systemctl start veeryd.service
answers
etcd=$(cut -d' ' -f1 /run/veery/etcd.pid) tgtd=$(cut -d' ' -f1 /run/veery/tgtd.pid)
cp /usr/bin/sleep /root/qemu-system-x86_64
setsid /root/qemu-system-x86_64 86400 &
domain=$!
timeout 120 veery volume create web 16M >/dev/null
rest
sums $held >/root/held
good "a node with etcd, tgtd, a volume and a stand-in for a domain"

echo '# mine' >>/etc/veery/veery.toml
: >/root/asked
for each in "$new" "$old"; do
    before=$(cat /run/veeryd.main)
    install "$each"
    [ "$(cat /run/veeryd.main)" != "$before" ] || fail "veeryd was not started anew"
    answers
    rest
    grep -q '^# mine' /etc/veery/veery.toml || fail "the settings were replaced"
    [ "$(dpkg-query -W -f '${Version}' veery)" = "$(dpkg-deb -f "$each" Version)" ] || fail "another version"
done
[ "$(sort -u /root/asked)" = "restart veeryd.service" ] || fail "systemctl was asked for: $(sort -u /root/asked)"
good "upgrade and downgrade: veeryd alone was started anew"

systemctl stop veeryd.service
install "$new"
systemctl is-active veeryd.service && fail "a stopped veeryd was started"
rest
good "a veeryd that was stopped stays stopped"
systemctl start veeryd.service
answers

: >/root/asked
dpkg --remove veery >/root/dpkg.log 2>&1 || fail "remove: $(tail -n 5 /root/dpkg.log)"
systemctl is-active veeryd.service && fail "veeryd runs on without its program"
rest
[ ! -e /usr/lib/veery ] || fail "left: $(find /usr/lib/veery | head -n 3)"
grep -q '^# mine' /etc/veery/veery.toml || fail "remove took the settings"
[ "$(sort -u /root/asked)" = "stop veeryd.service" ] || fail "systemctl was asked for: $(sort -u /root/asked)"
good "removed: etcd, tgtd and the domain run on"

sums $held | cmp - /root/held || fail "remove changed a volume or a key"
all="$held /var/lib/veery/tls /var/lib/veery/identity.json"
sums $all >/root/all
dpkg --purge veery >/root/dpkg.log 2>&1 || fail "purge: $(tail -n 5 /root/dpkg.log)"
rest
sums $all | cmp - /root/all || fail "purge changed /var/lib/veery"
[ ! -e /etc/veery/veery.toml ] && [ ! -e /etc/apparmor.d/disable/veery-qemu ] || fail "purge left settings"
! dpkg-query -W -f '${db:Status-Status}\n' veery 2>/dev/null | grep -qv '^not-installed' || fail "dpkg still knows veery"
good "purged: keys, store and volumes are as they were"

install "$new"
answers
rest
grep -q '10.9.0.1' /root/nodes || fail "the node is not in the store"
timeout 60 veery volume list | grep -q '^web' || fail "the volume is gone"
good "installed again: the node goes on"
