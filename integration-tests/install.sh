#!/bin/sh
# Installs what the tests, the demo and the benches need beyond the Rust toolchain. Says what it
# installs, and nothing when nothing is missing. Called by `make test`, `make demo`, `make bench`.
set -eu

# Administrators' directories are not in every PATH.
PATH=$PATH:/usr/sbin:/sbin

# What proves that a package is there | the package | what it is needed for
needs='
cc                              gcc          links Rust programs
c++                             g++          builds the runtime of the fuzz targets
/usr/lib/*/libc.a               libc6-dev    links the example functions statically
ip                              iproute2     makes network namespaces and links
iptables                        iptables     queues packets, which gives links a round-trip time
runc                            runc         runs functions in OCI containers
crun                            crun         is the other program that runs functions in OCI containers
dockerd                         docker.io    runs functions in Docker
docker-registry                 docker-registry gives images to nodes
/bin/busybox                    busybox-static  is what the tests of the runtimes put into containers
/usr/lib/postgresql/*/bin/initdb postgresql  is the database behind the example functions
openssl                         openssl      is a server to which TLS sessions are handed over
redis-server                    redis-server is a backend
mariadbd                        mariadb-server-core is a backend
mariadb                         mariadb-client-core is a client that knows nothing of Headstart
/usr/lib/python3/dist-packages/pip python3-pip  fetches drivers with their own tests
/usr/include/mariadb/mysql.h     libmariadb-dev compiles mysqlclient and mariadb, drivers of Python
/usr/include/python3*/Python.h  python3-dev  compiles them too
pkg-config                      pkg-config   finds the library for them
curl                            curl         is a client of functions
h2load                          nghttp2-client is another one
npm                             npm          fetches node-postgres, a driver that knows nothing of Headstart
cmake                           cmake        builds the client of AWS Lambda for node
/usr/include/node/node_api.h    libnode-dev  builds it too
/usr/lib/python3/dist-packages/pymysql python3-pymysql is a driver that knows nothing of Headstart
qemu-system-x86_64              qemu-system-x86 boots kernels that have what this one lacks
xz                              xz-utils     unpacks their modules
mmdebstrap                      mmdebstrap   installs the systems that are booted there
pgbouncer                       pgbouncer    is what connections are compared with
/usr/lib/python3/dist-packages/redis python3-redis is a driver that knows nothing of Headstart
/usr/lib/python3/dist-packages/psycopg2 python3-psycopg2 is a driver that knows nothing of Headstart
/usr/lib/python3/dist-packages/pg8000 python3-pg8000 is a driver that knows nothing of Headstart
/usr/lib/python3/dist-packages/asyncpg python3-asyncpg is a driver that knows nothing of Headstart
/usr/bin/gunicorn gunicorn is a server that knows nothing of Headstart
/usr/bin/uvicorn uvicorn is a server that knows nothing of Headstart
/usr/lib/python3/dist-packages/waitress python3-waitress is a server that knows nothing of Headstart
/usr/sbin/nginx nginx-light is a server that knows nothing of Headstart
/usr/bin/php php-cli is a server that knows nothing of Headstart
/usr/sbin/php-fpm* php-fpm is another one
/usr/lib/php/20*/pgsql.so php-pgsql is its driver of PostgreSQL
/usr/share/rubygems-integration/all/gems/webrick-* ruby-webrick is a server that knows nothing of Headstart
/usr/bin/puma puma is a server that knows nothing of Headstart
/usr/lib/ruby/vendor_ruby/pg.rb ruby-pg is its driver of PostgreSQL
/usr/lib/*/perl5/5*/DBD/Pg.pm libdbd-pg-perl is the one of Perl
/usr/lib/python3/dist-packages/django python3-django is a server that knows nothing of Headstart
'

# Whether a program is in the PATH, or a file exists that matches a pattern.
present() {
    case " ${HEADSTART_INSTALL_PRETEND_MISSING:-} " in *" $1 "*) return 1 ;; esac
    case $1 in
    /*) set -- $1 && [ -e "$1" ] ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

missing=''
reasons=''
while read -r proof package reason; do
    [ -n "$proof" ] || continue
    if ! present "$proof"; then
        missing="$missing $package"
        reasons="$reasons
  $package: $reason"
    fi
done <<END
$needs
END
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "This is not Debian: please install by hand$reasons" >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "These packages are missing:$reasons
Installing them needs root. Run: sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
fi

echo "Installing with apt-get:$reasons"

# The tests start their own servers. Unless this host has a policy already, installing the packages
# starts none (a database on port 5432, a Docker daemon with its bridge).
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
# Package names hold no blanks. The lists may be missing or too old: fetch them first.
# shellcheck disable=SC2086
if ! { apt-get update && apt-get install --yes --no-install-recommends $missing; } >"$log" 2>&1; then
    cat "$log" >&2
    echo "apt-get failed; its output is above." >&2
    rm -f "$log"
    exit 1
fi
rm -f "$log"
echo "Installed:$missing"
