# The commands of this project. Each installs what it needs and says so.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

EBPF_OBJECT := $(CURDIR)/target/ebpf/headstart-ebpf.o

.PHONY: help demo bench test check fuzz ebpf install build

help: ## Lists the commands.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

install: ## Installs the Debian packages that tests and demo use (root).
	@bash integration-tests/install.sh

build: ## Builds the agent, target/release/headstart.
	@cargo build --release --locked -p headstart-agent

demo: install ## Three requests side by side: warm, cold, cold the usual way (root).
	@cargo build --release --locked -p headstart-agent -p headstart-integration-tests
	@target/release/demo

# All parts run, also when one breaks a promise: the report shows by how much.
bench: install ## Measures cost per packet, lifecycle, injection, cold starts under a flood: target/bench/report.md (root).
	@cargo build --release --locked -p headstart-agent -p headstart-integration-tests
	@rm -rf target/bench && mkdir -p target/bench
	@failed=0; cargo bench --locked -p headstart-ebpf || failed=$$?; \
	target/release/lifecycle || failed=$$?; \
	target/release/inject || failed=$$?; \
	target/release/bench && exit "$$failed"

ebpf: ## Rebuilds the eBPF object from source into target/ebpf (root, Debian).
	@bash ebpf/build.sh

test: install ## Every test; those that need root are skipped without it.
	@cargo build --release --locked -p headstart-agent
	@cargo test --workspace --locked

# The tests of this name take any bytes; each case is a fresh one, and what fails is shrunk and printed.
fuzz: ## Random bytes for everything that parses what others send, CASES=200000 for each parser.
	@PROPTEST_CASES=$(or $(CASES),200000) PROPTEST_FAILURE_PERSISTENCE=off \
	cargo test --workspace --locked --lib panic

check: ## Formatting, lints, docs, the rules of the repository and of its dependencies' licences.
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings
	@RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
	@cargo test --locked --quiet -p headstart-integration-tests --test repository
