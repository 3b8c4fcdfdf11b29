# `make lab` runs the experiment, `make test` the tests. Both install what they need.
.PHONY: help lab test build fmt-check lint licences unit shell-check clean

CARGO ?= cargo
TOOLS := $(CURDIR)/target/tools
DENY_VERSION := 0.20.2
export PATH := $(TOOLS)/bin:$(PATH):/usr/sbin:/sbin

help:
	@echo 'make lab         the experiment: every path and protection, verdict on the screen, report in results/'
	@echo 'make test        format, lints, licences, unit, property and real-packet tests (root or sudo for a few)'

# Arguments for the lab, e.g. make lab ARGS='--repeat 3'
lab:
	@tools/setup lab
	@echo '== building (release)'
	@$(CARGO) build --release --quiet --workspace
	@target/release/conntrack-lab run $(ARGS)

test:
	@tools/setup test
	@$(MAKE) --no-print-directory fmt-check lint licences shell-check unit

fmt-check:
	@echo '== format'
	@$(CARGO) fmt --all --check

lint:
	@echo '== clippy, warnings are errors'
	@$(CARGO) clippy --quiet --workspace --all-targets -- -D warnings

licences: $(TOOLS)/bin/cargo-deny
	@echo '== licences, duplicate versions, sources'
	@$(CARGO) deny --log-level error check licenses bans sources

$(TOOLS)/bin/cargo-deny:
	@if command -v cargo-deny >/dev/null 2>&1; then mkdir -p $(@D) && ln -sf "$$(command -v cargo-deny)" $@; \
	else echo '== installing cargo-deny $(DENY_VERSION) into target/tools'; \
	$(CARGO) install --quiet --locked --root $(TOOLS) --version $(DENY_VERSION) cargo-deny; fi

shell-check:
	@echo '== shellcheck'
	@git ls-files | while read -r f; do head -n 1 "$$f" | grep -qE '^#! ?/(usr/)?bin/(env )?(ba|da)?sh' && echo "$$f"; done | xargs -r shellcheck

# The programs first: the namespace tests run them.
unit:
	@echo '== unit, property and real-packet tests'
	@$(CARGO) build --quiet --workspace
	@$(CARGO) test --workspace --no-fail-fast

clean:
	@$(CARGO) clean
