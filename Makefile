# The commands of this project. Each installs what it needs and says so.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

EBPF_OBJECT := $(CURDIR)/target/ebpf/headstart-ebpf.o

.PHONY: help demo bench bench-smoke soak peers test test-vm check fuzz ebpf install build

help: ## Lists the commands.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

install: ## Installs the Debian packages that tests and demo use (root).
	@bash integration-tests/install.sh

build: ## Builds the agent, the init of unchanged servers and the Runtime API of Lambda: headstart, headstart-init and headstart-lambda in target/release.
	@cargo build --release --locked -p headstart-agent
	@$(STATIC) --release -p headstart-init -p headstart-lambda
	@cp target/$(TRIPLE)/release/headstart-{init,lambda} target/release

# What tests and the demo run is optimised, but without what makes a release take three times as long to compile. What
# goes into containers is linked statically.
TRIPLE := x86_64-unknown-linux-gnu
STATIC := RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --target $(TRIPLE)
WITH_PROGRAMS := HEADSTART_BIN=$(CURDIR)/target/lab/headstart HEADSTART_STATIC_DIR=$(CURDIR)/target/$(TRIPLE)/lab

.PHONY: programs
programs:
	@cargo build --profile lab --locked -p headstart-agent
	@$(STATIC) --profile lab -p headstart-lab-functions -p headstart-init -p headstart-lambda -p echo -p orders
	@cp target/$(TRIPLE)/lab/headstart-{init,lambda} target/lab

# All of it static: what the function needs is then compiled once, not twice.
demo: install ## Three requests side by side: warm, cold, cold the usual way (root).
	@test -x target/$(TRIPLE)/lab/demo || echo "Compiling, the first time: some three minutes on two cores."
	@$(STATIC) --profile lab -p headstart-agent -p headstart-integration-tests -p orders --bin headstart --bin demo --bin orders
	@$(WITH_PROGRAMS) HEADSTART_BIN=$(CURDIR)/target/$(TRIPLE)/lab/headstart target/$(TRIPLE)/lab/demo

# It compiles first, the first time for seven minutes on two cores. QUICK=1: about four minutes instead of forty, and what
# needs more samples than that is not judged. SEED=N: the order of an earlier run.
bench: install peers ## Measures everything, beside what others use: target/bench/report.md, plots (root; 40 minutes; QUICK=1: 4, and 7 to compile; SEED=N).
	@cargo build --release --locked -p headstart-agent -p headstart-integration-tests
	@$(STATIC) --release -p headstart-lab-functions -p headstart-init -p headstart-lambda -p echo -p orders
	@cp target/$(TRIPLE)/release/headstart-{init,lambda} target/release
	@cargo bench --locked --quiet -p headstart-ebpf --no-run
	@HEADSTART_BIN=$(CURDIR)/target/release/headstart HEADSTART_STATIC_DIR=$(CURDIR)/target/$(TRIPLE)/release \
	  target/release/bench $(if $(QUICK),--quick) $(if $(SEED),--seed $(SEED))

bench-smoke: install programs ## Checks the benches: they find known delays in the stages that have them (root).
	@$(WITH_PROGRAMS) cargo test --locked -p headstart-integration-tests --test smoke -- --nocapture

soak: install programs ## A node under everything at once, for MINUTES=45: no request may be lost, nothing may grow (root; SEED=N).
	@cargo build --profile lab --locked -p headstart-integration-tests --bin soak
	@$(WITH_PROGRAMS) target/lab/soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

# The one program that no Debian package has. Without it the bench leaves that peer out.
peers:
	@npm install --silent --no-audit --no-fund --ignore-scripts --prefix target/peers workerd@1.20261117.1 \
	  || echo "npm cannot install workerd: the bench does not measure it"

ebpf: ## Rebuilds the eBPF object from source into target/ebpf (root, Debian).
	@bash ebpf/build.sh

test: install programs ## Every test; those that need root are skipped without it.
	@$(WITH_PROGRAMS) cargo test --workspace --locked

# Debian's kernels have kTLS: the older one cannot change the keys of a session, the newer one can. The agent's unit is tried
# on Debian's own systemd: STOCK="bookworm trixie" for 12 and 13.
test-vm: install programs ## The tests that need another kernel or systemd, in virtual machines (root; STOCK=SUITES).
	@$(WITH_PROGRAMS) cargo test --locked -p headstart-integration-tests --test inject travels
	@for suite in bookworm trixie-backports; do \
	  echo "== the kernel of $$suite"; \
	  export $(WITH_PROGRAMS) CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="sh $(CURDIR)/integration-tests/vm/run.sh $$suite"; \
	  cargo test --locked -p headstart --features http,postgres,tls --lib tls; \
	  cargo test --locked -p headstart-integration-tests --test inject travels; \
	done
	@for suite in $(or $(STOCK),bookworm); do \
	  echo "== Debian's $$suite"; \
	  export $(WITH_PROGRAMS) HEADSTART_STOCK=1; \
	  export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="sh $(CURDIR)/integration-tests/vm/run.sh --boot $$suite"; \
	  cargo test --locked -p headstart-integration-tests --test stock -- --test-threads=1; \
	done

fuzz: install ## Fuzzes everything that parses what others send, SECONDS=60 for each target.
	@bash integration-tests/fuzz/run.sh $(or $(SECONDS),60)

check: ## Formatting, lints, docs, the rules of the repository and of its dependencies' licences.
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings
	@RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
	@cargo test --locked --quiet -p headstart-integration-tests --test repository
