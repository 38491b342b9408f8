# `make` or `make help` tells what can be made.

CARGO ?= cargo
# Of `make sim`.
SEED ?= 0
# Of `make demo`, handed to `romulus demo`: see `romulus demo --help`.
ARGS ?=
# Of `make fuzz`: for how long each target, and which; all without.
MINUTES ?= 1
TARGET ?=

.PHONY: help check test lab demo bench sim fuzz doctor deny packages lab-packages

help: ## Show this
	@echo 'make TARGET, where TARGET is one of:'
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: lab-packages ## Install what is missing from Debian, then run all tests
	@scripts/preflight cargo
	$(CARGO) test --locked --workspace --no-fail-fast

# The whole workspace, so that nothing is built otherwise than for `make test`.
lab: lab-packages ## Cut the power of emulated hosts, and show what happens
	@scripts/preflight cargo
	ROMULUS_REQUIRE=lab $(CARGO) test --locked --workspace --test lab -- --nocapture --test-threads=1

demo: packages ## Fail over a live guest on this machine, in a minute; ARGS="--keep" and the like
	@scripts/preflight cargo kvm root
	$(CARGO) run --locked --release --package romulus -- demo $(ARGS)

check: ## Formatting, lints, the house style, and the licences if cargo-deny is installed
	@scripts/preflight cargo
	$(CARGO) fmt --all --check
	$(CARGO) fmt --check --manifest-path guest/Cargo.toml
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) test --locked --quiet --package romulus-tests --test tidy
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		echo '$(CARGO) deny check licenses bans sources'; \
		$(CARGO) deny --locked --workspace check licenses bans sources; \
	else \
		echo 'check: licences, bans and sources are NOT checked: cargo-deny is not installed (`make deny` installs it)'; \
	fi

deny: ## Install cargo-deny if need be (minutes) and check licences, bans and sources
	@scripts/preflight cargo
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --locked --workspace check licenses bans sources

bench: packages ## Benchmarks of the hot loops
	@scripts/preflight cargo
	$(CARGO) bench --locked --package romulus-benches

sim: ## Run the cluster simulation of one seed, and print what happens: SEED=7
	@scripts/preflight cargo
	SEED=$(SEED) $(CARGO) test --locked --package romulus-tests --release --test protocol everything_at_once -- --nocapture

fuzz: packages ## Feed everything that reads foreign bytes, on nightly: MINUTES=10 TARGET=frame
	@scripts/preflight cargo
	CARGO=$(CARGO) scripts/fuzz $(MINUTES) $(TARGET)

doctor: packages ## Tell what this host can do, and why not
	@scripts/preflight cargo
	$(CARGO) run --locked --quiet --release --package romulus -- doctor

packages:
	@scripts/install-packages

lab-packages:
	@scripts/install-packages lab
