#!/bin/sh
# Makes a root file system for this function from Debian's packages, for runtime = "oci": Python, a driver, the module
# headstart and orders.py. It installs nothing on this system. A second run only updates the function.
set -eu

[ $# = 1 ] || { echo "usage: rootfs.sh DIRECTORY    (root, Debian)" >&2; exit 2; }
mkdir -p "$1"
root=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)

PACKAGES="python3 python3-psycopg2"
# Dependencies for installation, documentation or interactive use only.
NOT="dpkg tar install-info mailcap mime-support perl perl-.* libperl.* readline-common debconf"

if [ ! -e "$root/.complete" ]; then
    echo "unpacking $PACKAGES and what they need into $root"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    # shellcheck disable=SC2086 # one word per package
    all=$(apt-cache depends --recurse --important $PACKAGES | grep -E '^[a-z0-9][a-z0-9+.-]*$' | sort -u)
    pattern=$(echo "$NOT" | tr ' ' '|')
    needed=$(echo "$all" | grep -vxE "$pattern")
    # shellcheck disable=SC2086
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download $needed)
    for package in "$work"/*.deb; do
        dpkg-deb --extract "$package" "$root"
    done
    rm -rf "$root/usr/share/doc" "$root/usr/share/man" "$root/usr/share/locale"
    mkdir -p "$root/proc" "$root/dev" "$root/sys" "$root/tmp" "$root/run/headstart" "$root/etc" "$root/app"
    echo "root:x:0:0:root:/:/bin/false
nobody:x:65534:65534::/:/bin/false" >"$root/etc/passwd"
    echo "root:x:0:
nogroup:x:65534:" >"$root/etc/group"
    touch "$root/.complete"
fi
module=$root/usr/lib/python3/dist-packages/headstart
mkdir -p "$module"
cp "$here/../../runtime-shim/python/src/headstart/"*.py "$module"
cp "$here/orders.py" "$root/app"
# Compile the imported modules now: the function cannot write, and would compile them at every start.
chroot "$root" /usr/bin/python3 -c 'import json, headstart, headstart._wsgi, psycopg2'
