# `make lab` runs the experiment, `make test` the tests. Both install what they need.
.PHONY: help lab test kernels bench bench-fill soak bench-boom bench-witness load-bench matrix network fuzz fuzz-scenarios \
	fuzz-captures properties simulation test-images images load-images \
	test-kernels test-k8s programs fmt-check lint licences shell-check docs oldest-rust built alone beside unit manifests reference picture dist \
	publish clean

CARGO ?= cargo
TOOLS := $(CURDIR)/target/tools
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
DENY_VERSION := 0.20.2
OHA_VERSION := 1.16.0
FUZZ_VERSION := 0.13.2
CYCLONEDX_VERSION := 0.5.9
export PATH := $(TOOLS)/bin:$(PATH):/usr/sbin:/sbin

help:
	@echo 'make lab         the experiment: every path and protection, verdict on the screen, report in results/'
	@echo 'make test        format, lints, licences, unit, property and real-packet tests, manifests'
	@echo 'make kernels     the same experiment on Linux 5.10, 6.1, 6.12 and the newest, one table'
	@echo
	@echo 'make test-kernels  the oldest and the newest kernel, the short matrix'
	@echo 'make matrix      boom-server against every forgery and protection, 1,000 connections a cell'
	@echo 'make network     both directions through bad networks, every forgery and protection, 1,000 connections a cell'
	@echo 'make simulation  the state machine in simulated networks, 10,000,000 connections'
	@echo 'make fuzz-scenarios  1,000,000 scenario files, none of which may make the lab panic'
	@echo 'make fuzz        the segment decoder and the state machine, 50,000,000 cases each; 10,000,000 damaged captures'
	@echo '                 and as many damaged messages of the kernel'
	@echo 'make fuzz-captures  the damaged captures and messages alone'
	@echo 'make test-images   builds both images and runs them (a Docker daemon of its own; root)'
	@echo 'make images          builds both for amd64 and arm64 and pushes them: REGISTRY=...'
	@echo 'make load-images     builds both and loads them: CLUSTER=kind or minikube'
	@echo 'make test-k8s      what must hold on the cluster of the current kubectl context; changes nodes and puts them back'
	@echo 'make bench         load-client against wrk, oha and bare loops, as ratios'
	@echo 'make bench-fill    a conntrack table filled from empty and kept full, seen by observe'
	@echo 'make soak          10,000,000 connections under injected failures, every one accounted for'
	@echo 'make bench-boom    boom-server at the rate that this machine reaches, beside a sniffer of the simple kind'
	@echo 'make bench-witness what a witness costs churn beside it; INVALID segments at a rate, and what it loses of them'
	@echo
	@echo 'make reference     docs/reference, written from the programs'
	@echo 'make dist          static programs, man pages, completions, SBOM, checksums in dist/'
	@echo
	@echo 'lab, kernels, test-k8s and bench take arguments: make lab ARGS=--help'

# Arguments for the lab, e.g. make lab ARGS='--repeat 3'
lab:
	@tools/setup lab
	@$(MAKE) --no-print-directory programs
	@target/release/conntrack-lab run $(ARGS)

programs:
	@echo '== building (release)'
	@$(CARGO) build --release --quiet -p conntrack-lab -p boom-server -p load-client

test:
	@tools/setup test
	@$(MAKE) --no-print-directory fmt-check lint oldest-rust built
	@status=0; $(MAKE) --no-print-directory --keep-going --jobs=2 --output-sync=target alone beside || status=$$?; \
	$(MAKE) --no-print-directory unit || status=$$?; exit $$status

fmt-check:
	@echo '== format'
	@$(CARGO) fmt --all --check

lint:
	@echo '== clippy, warnings are errors'
	@$(CARGO) clippy --quiet --workspace --all-targets -- -D warnings

docs:
	@echo '== rustdoc, warnings are errors'
	@RUSTDOCFLAGS='-D warnings' $(CARGO) doc --quiet --workspace --no-deps

licences: $(TOOLS)/bin/cargo-deny
	@echo '== licences, duplicate versions, sources'
	@$(CARGO) deny --log-level error check licenses bans sources

# Unoptimised: its build is minutes shorter, and its run is a second.
$(TOOLS)/bin/cargo-deny:
	@if command -v cargo-deny >/dev/null 2>&1; then mkdir -p $(@D) && ln -sf "$$(command -v cargo-deny)" $@; \
	else echo '== installing cargo-deny $(DENY_VERSION) into target/tools'; \
	CARGO_PROFILE_DEV_DEBUG=0 $(CARGO) install --quiet --locked --debug --root $(TOOLS) --version $(DENY_VERSION) cargo-deny; fi

shell-check:
	@echo '== shellcheck'
	@git ls-files | while read -r f; do head -n 1 "$$f" | grep -qE '^#! ?/(usr/)?bin/(env )?(ba|da)?sh' && echo "$$f"; done | xargs -r shellcheck

OLDEST_RUST := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
oldest-rust:
	@if rustup run $(OLDEST_RUST) rustc --version >/dev/null 2>&1; then echo '== Rust $(OLDEST_RUST), the oldest that is promised'; \
	rustup run $(OLDEST_RUST) cargo check --quiet --workspace --target-dir target/oldest-rust; \
	else echo '== SKIPPED: Rust $(OLDEST_RUST), the oldest that is promised, is not here (rustup toolchain install $(OLDEST_RUST))'; fi

# The tests, and with them the programs that they run. A `cargo build` would build most dependencies
# again (tests need more of their features).
built:
	@echo '== building the tests'
	@$(CARGO) test --quiet --workspace --no-run

# They change nf_conntrack_max of the machine, and mostly wait: beside them runs what sends no packets.
alone: built
	@echo '== saturation: beside no other tests of packets'
	@$(CARGO) test --workspace --test saturation

beside:
	@nice -n 5 $(MAKE) --no-print-directory licences docs shell-check properties manifests

unit:
	@echo '== unit and real-packet tests'
	@$(CARGO) test --workspace --no-fail-fast -- --skip alone::

# A million cases need optimised code; what they do not touch stays as it was built.
OPTIMISED := $(foreach p,canary-forge canary-wire canary-record proptest,--config profile.dev.package.$(p).opt-level=2)
properties:
	@echo '== the state machine under a million arbitrary connections'
	@BOOM_CASES=1000000 $(CARGO) test $(OPTIMISED) --quiet -p canary-forge --test properties
	@echo '== a million connections in simulated networks'
	@SIM_CONNECTIONS=1000000 $(CARGO) test $(OPTIMISED) --quiet -p canary-forge --test simulation

# CONNECTIONS through simulated networks, with the figures of each.
simulation:
	@SIM_CONNECTIONS=$(or $(CONNECTIONS),10000000) $(CARGO) test $(OPTIMISED) -p canary-forge --test simulation -- --nocapture

manifests:
	@echo '== manifests, dashboard and what runs on nodes'
	@k8s/tests/validate

# The whole table; ARGS='5.10 newest' for some kernels.
kernels:
	@tools/setup kernels
	@$(MAKE) --no-print-directory programs
	@lab/kernels/all $(ARGS)

test-kernels:
	@tools/setup kernels
	@$(MAKE) --no-print-directory built
	@LAB_KERNELS_PROGRAMS=target/debug lab/kernels/all --short --within 360 5.10 newest

load-bench:
	@tools/setup bench
	@echo '== building (release)'
	@$(CARGO) build --release --quiet -p load-client --features bench
	@mkdir -p results

# Arguments for load-bench, e.g. ARGS='--rounds 7'.
bench: $(TOOLS)/bin/oha load-bench
	@target/release/load-bench compare --oha $(TOOLS)/bin/oha --output results/bench.json $(ARGS)

# A table of nf_conntrack_max entries, filled from empty and kept full.
bench-fill: load-bench
	@target/release/load-bench fill --output results/fill.json $(ARGS)

# 10,000,000 connections while things go wrong, some 10 minutes; ARGS='--connections 1000000'.
soak: load-bench
	@target/release/load-bench soak --output results/soak.json $(ARGS)

$(TOOLS)/bin/oha:
	@echo '== installing oha $(OHA_VERSION) into target/tools'
	@$(CARGO) install --quiet --locked --root $(TOOLS) --version $(OHA_VERSION) oha

# RATE handshakes a second for SECONDS, beside a sniffer of the simple kind; unless told, the rate
# that this machine reaches, up to 20,000.
bench-boom:
	@tools/setup lab
	@echo '== building (release)'
	@$(CARGO) build --release --quiet -p boom-server --bin boom-server --example bench
	@target/release/examples/bench $(or $(RATE),best) $(or $(SECONDS),60)

# First churn with a witness on each node and without, by turns. ARGS='20000 60' for one rate alone.
bench-witness:
	@tools/setup lab
	@echo '== building (release)'
	@$(CARGO) build --release --quiet -p load-client --features bench
	@[ -n "$(ARGS)" ] || { mkdir -p results && target/release/load-bench beside --output results/witness.json; }
	@target/release/load-bench witness $(ARGS)

# CELL connections a cell; then SAFE connections of either direction that nothing called safe may end. Needs 20,000 open files.
matrix:
	@tools/setup test
	@BOOM_MATRIX=$(or $(CELL),1000) $(CARGO) test -p boom-server --test real matrix -- --nocapture --test-threads=1
	@BOOM_SAFE=$(or $(SAFE),100000) $(CARGO) test -p boom-server --test real safe_segments -- --nocapture
	@LOAD_SAFE=$(or $(SAFE),100000) $(CARGO) test -p load-client --test real safe_segments -- --nocapture

# CELL connections a cell, through each of the bad networks.
network:
	@tools/setup test
	@CELL=$(or $(CELL),1000) $(CARGO) test -p boom-server --test network -- --nocapture --test-threads=1

# RUNS cases for each target, on stable: no sanitizer, which forbidden unsafe code does not need.
FUZZ_TARGETS := segment flow
fuzz: $(TOOLS)/bin/cargo-fuzz fuzz-captures
	@for t in $(FUZZ_TARGETS); do mkdir -p target/fuzz/corpus/$$t && \
	(cd common/forge && cargo-fuzz fuzz run --fuzz-dir fuzz -s none --target-dir ../../target/fuzz $$t \
	../../target/fuzz/corpus/$$t fuzz/corpus/$$t -- -runs=$(or $(RUNS),50000000) -max_len=480 -print_final_stats=1) || exit 1; done

# RUNS scenario files, near to the shipped ones and far from them, none of which may make the loader panic.
fuzz-scenarios:
	@PROPTEST_CASES=$(or $(RUNS),1000000) $(CARGO) test --release -p conntrack-lab --lib no_file_panics

# CASES damaged captures of every format and link layer; as many damaged datagrams of the kernel's messages.
fuzz-captures:
	@WITNESS_CASES=$(or $(CASES),10000000) $(CARGO) test \
	$(foreach p,load-client canary-record canary-wire etherparse netlink-packet-core pcap-file,--config profile.dev.package.$(p).opt-level=2) \
	--quiet -p load-client --lib garbage

$(TOOLS)/bin/cargo-fuzz:
	@echo '== installing cargo-fuzz $(FUZZ_VERSION) into target/tools'
	@$(CARGO) install --quiet --locked --root $(TOOLS) --version $(FUZZ_VERSION) cargo-fuzz

test-images:
	@tools/setup images
	@k8s/tests/images

# Both images for both architectures into REGISTRY=registry.example/conntrack-canary; with REGISTRY_USER and
# REGISTRY_TOKEN it logs in first.
images:
	@: $${REGISTRY:?REGISTRY names where the images go}
	@[ -z "$$REGISTRY_TOKEN" ] || echo "$$REGISTRY_TOKEN" | docker login --username "$$REGISTRY_USER" --password-stdin "$${REGISTRY%%/*}"
	@tools/publish-images

# Both images for this machine, into the nodes of CLUSTER=kind or minikube (NAME=... for another than the default)
load-images:
	@case '$(CLUSTER)' in kind|minikube) ;; *) echo 'make load-images CLUSTER=kind, or minikube' >&2; exit 2 ;; esac
	@for name in boom-server load-client; do \
	image=conntrack-canary/$$name:$(VERSION); \
	docker build --target $$name --build-arg VERSION=$(VERSION) -t $$image . || exit 1; \
	case '$(CLUSTER)' in \
	kind) kind load docker-image $(if $(NAME),--name $(NAME)) $$image ;; \
	minikube) minikube image load $(if $(NAME),--profile $(NAME)) $$image ;; \
	esac || exit 1; done

test-k8s:
	@echo '== building (release)'
	@$(CARGO) build --release --quiet -p kubectl-conntrack --example test-k8s
	@target/release/examples/test-k8s $(ARGS)

# What is written from the programs: docs/reference, which a test compares; and the README's picture, from the newest run.
reference:
	@$(CARGO) run --quiet -p canary-release -- reference docs

picture:
	@$(CARGO) run --quiet -p canary-release -- picture docs

# Static programs, man pages, completions, SBOM and checksums in dist/.
dist: $(TOOLS)/bin/cargo-cyclonedx
	@tools/setup dist
	@tools/dist

# dist/ and the schemas as a release of the tag v$(VERSION), by GitHub's gh.
publish: dist
	@gh release create v$(VERSION) dist/* schema/* --verify-tag --notes-file CHANGELOG.md

$(TOOLS)/bin/cargo-cyclonedx:
	@echo '== installing cargo-cyclonedx $(CYCLONEDX_VERSION) into target/tools'
	@CARGO_PROFILE_DEV_DEBUG=0 $(CARGO) install --quiet --locked --debug --root $(TOOLS) --version $(CYCLONEDX_VERSION) cargo-cyclonedx

clean:
	@$(CARGO) clean
