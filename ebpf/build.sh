#!/bin/sh
# Builds the kernel programs (usage below). Installs or builds missing tools, with a message; a second run only builds.
set -eu

usage="usage: ebpf/build.sh [OUT_DIR]    build OUT_DIR/headstart-*.o (default: target/ebpf)
       ebpf/build.sh --update     build, then replace the objects in ebpf/prebuilt/ and their source hash
       ebpf/build.sh --hash       print the hash of the sources"

# The objects of a node, of a client's cgroup, of the agent's own, and of benches.
OBJECTS="headstart-ebpf headstart-tag headstart-guard headstart-bench"
LINKER_VERSION=0.13.0 # of bpf-linker; must support the LLVM that $LLVM holds and rustc uses
PACKAGES="rustc-web cargo-web rust-web-src llvm-22-dev libpolly-22-dev"
LLVM=/usr/lib/llvm-22

repo=$(cd "$(dirname "$0")/.." && pwd)
tools=$repo/target/tools
say() { echo "ebpf/build.sh: $*" >&2; }

# The sources, as one hash. Recipe (tests/prebuilt.rs repeats it): for ebpf/Cargo.toml and ebpf/src/**/*.rs,
# by path in byte order, feed sha256 with: path relative to the repository, NUL, length in decimal, NUL,
# content.
source_hash() {
    (
        cd "$repo"
        { echo ebpf/Cargo.toml; find ebpf/src -name '*.rs'; } | LC_ALL=C sort | while read -r file; do
            printf '%s\0%s\0' "$file" "$(($(wc -c <"$file")))"
            cat "$file"
        done | sha256sum | cut -d' ' -f1
    )
}

# A compiler with the core library's source. Debian's "web" packages are recent enough; elsewhere a nightly
# toolchain serves, which needs no RUSTC_BOOTSTRAP.
find_compiler() {
    if command -v apt-get >/dev/null; then
        missing=
        for package in $PACKAGES; do
            dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
        done
        if [ -n "$missing" ]; then
            [ "$(id -u)" = 0 ] || { say "needs:  sudo apt-get install$missing"; exit 1; }
            say "installing with apt-get:$missing"
            apt-get update -qq
            # shellcheck disable=SC2086 # one word per package
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
        fi
        RUSTC=/usr/bin/rustc cargo=/usr/bin/cargo RUSTC_BOOTSTRAP=1 objcopy=$LLVM/bin/llvm-objcopy
        export RUSTC RUSTC_BOOTSTRAP
    elif command -v rustup >/dev/null && RUSTC=$(rustup which --toolchain nightly rustc 2>/dev/null) &&
        [ -d "$("$RUSTC" --print sysroot)/lib/rustlib/src/rust/library" ]; then
        cargo=$(rustup which --toolchain nightly cargo) objcopy=llvm-objcopy
        export RUSTC
    else
        say "no apt-get here. Needed: rustup toolchain install nightly --component rust-src"
        say "and bpf-linker (https://github.com/aya-rs/bpf-linker) and llvm-objcopy on the PATH"
        exit 1
    fi
}

find_linker() {
    linker=$tools/bin/bpf-linker
    [ -x "$linker" ] && return
    if ! command -v apt-get >/dev/null && linker=$(command -v bpf-linker); then return; fi
    say "building bpf-linker $LINKER_VERSION into target/tools (some minutes, once)"
    # With the repository's pinned Rust, not Debian's. bpf-linker's own build script reads LLVM_PREFIX,
    # llvm-sys's the other variable.
    (
        unset RUSTC RUSTC_BOOTSTRAP CARGO_TARGET_DIR
        cd "$repo"
        # Unoptimised: it links one small program, and what it spends its time in is LLVM.
        CARGO_PROFILE_DEV_DEBUG=0 LLVM_PREFIX=$LLVM LLVM_SYS_221_PREFIX=$LLVM \
            cargo install bpf-linker --version "=$LINKER_VERSION" --debug --locked --no-default-features \
            --features llvm-22 --root "$tools" --target-dir "$tools/build"
    ) >&2
    rm -rf "$tools/build"
}

# Reproducible: fixed flags (the workspace's profile does not apply), and no path of this machine.
# Loads of any alignment are allowed: the verifier accepts them wherever the CPU does (x86-64, arm64), and a
# SYN costs a third less. Without "expand in order", LLVM stores zeros itself instead of calling a memset loop.
build() {
    mkdir -p "$1"
    target_dir=$repo/target/ebpf/cargo
    flags="-Cdebuginfo=2 -Ctarget-feature=+allows-misaligned-mem-access"
    flags="$flags -Clink-arg=--btf -Clink-arg=--disable-expand-memcpy-in-order"
    flags="$flags --remap-path-prefix=$repo=. --remap-path-prefix=$("$RUSTC" --print sysroot)=/rust"
    flags="$flags --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    (
        cd "$repo"
        unset CARGO_ENCODED_RUSTFLAGS
        CARGO_TARGET_DIR=$target_dir RUSTFLAGS=$flags AYA_BPF_TARGET_ARCH=x86_64 \
            CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER=$linker \
            CARGO_PROFILE_RELEASE_DEBUG=2 CARGO_PROFILE_RELEASE_LTO=true CARGO_PROFILE_RELEASE_OPT_LEVEL=3 \
            CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 CARGO_PROFILE_RELEASE_PANIC=abort \
            "$cargo" build --release --locked -Zbuild-std=core --target bpfel-unknown-none \
            -p headstart-ebpf --bins --features kernel
    ) >&2
    # BTF stays; DWARF, five times the size of the rest, is of no use to the kernel.
    for object in $OBJECTS; do
        "$objcopy" --strip-debug "$target_dir/bpfel-unknown-none/release/$object" "$1/$object.o"
    done
}

case ${1-} in
-h | --help) echo "$usage" ;;
--hash) source_hash ;;
--update)
    find_compiler
    find_linker
    build "$repo/target/ebpf"
    mkdir -p "$repo/ebpf/prebuilt"
    for object in $OBJECTS; do
        cp "$repo/target/ebpf/$object.o" "$repo/ebpf/prebuilt/$object.o"
    done
    source_hash >"$repo/ebpf/prebuilt/SOURCE.sha256"
    say "updated ebpf/prebuilt"
    ;;
-*) echo "$usage" >&2; exit 2 ;;
*)
    out=${1:-$repo/target/ebpf}
    find_compiler
    find_linker
    build "$out"
    say "wrote $OBJECTS to $out"
    ;;
esac
