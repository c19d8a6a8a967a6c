#!/bin/sh
# Runs a command on another kernel: in a virtual machine whose root file system is this one's, read-only, with a layer
# in memory for what is written. Made to be cargo's runner, so that tests need not know of it.
set -eu

usage="usage: run.sh [--boot] SUITE PROGRAM [ARGUMENT...]
SUITE is one of Debian's: the kernel is the one that its linux-image-amd64 installs.
--boot: with the suite's own systemd and files instead of this system's; the program then runs as a unit"
boot=
[ "${1-}" != --boot ] || { boot=1; shift; }
[ $# -ge 2 ] || { echo "$usage" >&2; exit 2; }
suite=$1
shift

here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
vm=$project/target/vm
kernel=$vm/$suite
system=$vm/$suite-system
# The commands of a test are over in seconds; emulation is some ten times slower. A system boots first.
LIMIT=${boot:+600}
LIMIT=${LIMIT:-150}
# What a stock system has that tests use there.
PACKAGES=systemd,systemd-sysv,runc,iproute2,curl,python3-minimal

# What the guest needs to see the host's files, and what it is there for.
MODULES="net/9p fs/9p fs/netfs fs/fscache fs/overlayfs drivers/virtio drivers/net/veth net/tls net/ipv4/inet_diag net/ipv4/tcp_diag net/unix/unix_diag crypto arch/x86/crypto arch/x86/lib lib/crypto"

say() { echo "vm/run.sh: $*" >&2; }

# The packages of the kernel, from lists of our own: nothing of this system's is changed.
fetch() {
    lists=$1/apt
    mkdir -p "$lists/lists/partial" "$lists/cache/archives/partial"
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$keys] http://deb.debian.org/debian $suite main" >"$lists/sources.list"
    apt() {
        "$@" -o Dir::Etc::sourcelist="$lists/sources.list" -o Dir::Etc::sourceparts=- \
            -o Dir::State::lists="$lists/lists" -o Dir::Cache="$lists/cache" -o APT::Sandbox::User=root
    }
    apt apt-get -qq update >&2
    # The image, and its modules where they are a package of their own.
    packages=$(apt apt-cache depends --recurse --important linux-image-amd64 |
        grep -E '^linux-(image|binary|modules)-[0-9]' | sort -u)
    (cd "$1" && apt apt-get -qq download $packages >&2)
}

# target/vm/SUITE: the kernel, and a file system in memory to start from.
prepare() {
    say "fetching the kernel of Debian's $suite (once)"
    work=$(mktemp -d "$vm/.$suite.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    fetch "$work"
    mkdir "$work/files" "$work/initrd" "$work/out"
    for package in "$work"/linux-*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x -C "$work/files"
    done
    cp "$(find "$work/files" -name 'vmlinuz*' | head -n 1)" "$work/out/vmlinuz"
    modules=$(find "$work/files" -type d -path '*/modules/*/kernel' -prune)
    version=$(basename "$(dirname "$modules")")
    into=$work/initrd/lib/modules/$version
    for part in $MODULES; do
        mkdir -p "$into/kernel/$(dirname "$part")"
        if [ -d "$modules/$part" ]; then
            cp -r "$modules/$part" "$into/kernel/$(dirname "$part")"
        elif [ -e "$modules/$part.ko" ] || [ -e "$modules/$part.ko.xz" ]; then
            cp "$modules/$part".ko* "$into/kernel/$(dirname "$part")"
        fi
    done
    find "$into" -name '*.ko.xz' -exec xz -d {} +
    mkdir -p "$work/initrd/bin"
    cp /bin/busybox "$work/initrd/bin/busybox"
    cp "$here/init.sh" "$work/initrd/init"
    chmod 755 "$work/initrd/init"
    (cd "$work/initrd" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$work/out/initrd.gz"
    rm -rf "$kernel"
    mv "$work/out" "$kernel"
    rm -rf "$work"
    trap - EXIT
}

# target/vm/SUITE-system: what Debian's installer would make, with the packages above.
install_system() {
    say "installing Debian's $suite (once)"
    work=$(mktemp -d "$vm/.$suite.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mmdebstrap --quiet --variant=minbase --include="$PACKAGES" "$suite" "$work/system" http://deb.debian.org/debian >&2
    rm -rf "$work/system/var/cache/apt" "$work/system/var/lib/apt/lists"
    mv "$work/system" "$system"
    rm -rf "$work"
    trap - EXIT
}

mkdir -p "$vm"
# One machine at a time: they share the cores, and what is fetched.
exec 9>"$vm/lock"
flock 9
if [ ! -e "$kernel/initrd.gz" ] || [ "$here/init.sh" -nt "$kernel/initrd.gz" ]; then
    prepare
fi
[ -z "$boot" ] || [ -d "$system" ] || install_system

run=$(mktemp -d "$vm/.run.XXXXXX")
trap 'rm -rf "$run"' EXIT
trap 'exit 1' HUP INT TERM
{
    printf 'cd %s\n' "'$PWD'"
    printf 'export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root\n'
    # Nothing is built in there: what a test needs was built when it ran out here.
    printf 'export CARGO=true\n'
    env | grep -E '^(CI|(RUST|HEADSTART|CARGO)_[A-Z_]*)=[^ ]*$' | sed 's/^/export /'
    printf 'exec'
    for word in "$@"; do printf " '%s'" "$word"; done
    printf '\n'
} >"$run/command"

options="console=ttyS0 quiet loglevel=1 panic=-1 headstart.command=$run/command"
if [ -n "$boot" ]; then
    options="$options headstart.boot=$system headstart.project=$project systemd.wants=headstart-test.service"
    # The project may be below /tmp, which newer systems cover.
    options="$options systemd.show_status=false systemd.mask=serial-getty@ttyS0.service systemd.mask=tmp.mount"
fi
timeout --signal=KILL $LIMIT qemu-system-x86_64 -machine q35,accel=tcg -cpu max -smp 2 -m 2048 \
    -display none -monitor none -nic none -no-reboot -serial stdio -serial "file:$run/status" \
    -kernel "$kernel/vmlinuz" -initrd "$kernel/initrd.gz" \
    -append "$options" \
    -fsdev local,id=root,path=/,security_model=none,readonly=on,multidevs=remap \
    -device virtio-9p-pci,fsdev=root,mount_tag=root </dev/null || say "the machine did not end by itself ($?)"
status=$(tr -d '\r\n' <"$run/status")
[ -n "$status" ] || { say "the command did not end within $LIMIT s, or the kernel of $suite did not start"; exit 1; }
exit "$status"
