# `make` or `make help` tells what can be made.

CARGO ?= cargo
# Of `make sim`: the seed, and the deliberate bug to put in, if one is wanted.
SEED ?= 0
MUTATION ?=
# Of `make soak`: how long, 10 if not given.
MINUTES ?=
# Of `make soak-sim`: how long or how many, whichever ends first, and from which
# seed on; where failing seeds are kept.
SEEDS ?= $(if $(MINUTES),,100000)
FROM ?=
KEEP ?= target/failed-seeds
SIMULATE = $(CARGO) run --locked --quiet --release --package romulus-tests --example simulate --
# Of `make demo` and `make soak`, handed to `romulus demo` and `romulus soak`: see their `--help`.
ARGS ?=
# Of `make fuzz`: which target, for MINUTES=1 if not given; all without.
TARGET ?=

# Of `make bench-all`: where the reports go; more for each benchmark, as `--repeats 5`.
OUT ?= target/bench
BENCH_ARGS ?=
# Not a release: what was measured should be known all the same.
COMMIT = $(shell git describe --always --dirty 2>/dev/null)
MEASURE = ROMULUS_COMMIT=$(COMMIT) $(CARGO) run --locked --quiet --release --package romulus -- bench

.PHONY: help check test lab demo soak bench bench-micro bench-all instructions sim soak-sim fuzz doctor deny packages lab-packages

help: ## Show this
	@echo 'make TARGET, where TARGET is one of:'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: lab-packages ## Install what is missing from Debian, then run all tests
	@scripts/preflight cargo
	$(CARGO) test --locked --workspace --no-fail-fast

# The whole workspace, so that nothing is built otherwise than for `make test`.
lab: lab-packages ## Cut the power of emulated hosts, and show what happens
	@scripts/preflight cargo
	ROMULUS_REQUIRE=lab $(CARGO) test --locked --workspace --test lab -- --nocapture --test-threads=1
	ROMULUS_REQUIRE=lab $(CARGO) test --locked --workspace --test lab -- --nocapture --ignored \
		a_stock_guest a_server_on_the_stock_kernel

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

bench: ## Show what can be measured
	@echo 'make bench-micro       the hot loops'
	@echo 'make bench-all         all measurements of docs/performance.md, into $(OUT)'
	@echo 'romulus bench --help   single ones, with options:'
	@sed -n '/^pub enum BenchCommand/,/^}/ s/^    \([A-Z][a-z]*\)(.*/  \L\1/p' tools/src/bench/mod.rs

bench-micro: packages ## Benchmarks of the hot loops
	@scripts/preflight cargo
	$(CARGO) bench --locked --package romulus-benches

bench-all: packages ## All measurements of docs/performance.md, into OUT=target/bench
	@scripts/preflight cargo kvm root
	$(MEASURE) sweep --workload sparse --out $(OUT)/sparse $(BENCH_ARGS)
	$(MEASURE) sweep --workload busy --epochs fixed --intervals 10,25,100 --out $(OUT)/busy $(BENCH_ARGS)
	$(MEASURE) sweep --workload idle --intervals 10,25 --seconds 5 --out $(OUT)/idle $(BENCH_ARGS)
	$(MEASURE) failover --out $(OUT) $(BENCH_ARGS)
	$(MEASURE) pause --out $(OUT) $(BENCH_ARGS)
	$(MEASURE) wire --out $(OUT) $(BENCH_ARGS)
	$(MEASURE) peer --out $(OUT) $(BENCH_ARGS)

instructions: ## Count the instructions of the hot loops, steady on noisy machines; needs valgrind
	@scripts/preflight cargo
	CARGO=$(CARGO) scripts/count-instructions

soak: packages ## Random faults of real processes for MINUTES=10; ARGS="--seed 7 --etcd"
	@scripts/preflight cargo kvm root
	$(CARGO) run --locked --release --package romulus -- soak --minutes $(or $(MINUTES),10) $(ARGS)

sim: ## Run the cluster simulation of one seed, and print what happens: SEED=7
	@scripts/preflight cargo
	$(SIMULATE) seed $(SEED) $(MUTATION)

soak-sim: ## Run many seeds on all cores, keep those that fail: SEEDS=100000 or MINUTES=10
	@scripts/preflight cargo
	$(SIMULATE) soak $(if $(SEEDS),--seeds $(SEEDS)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(FROM),--from $(FROM)) --keep $(KEEP)

fuzz: packages ## Feed everything that reads foreign bytes, on nightly: MINUTES=10 TARGET=frame
	@scripts/preflight cargo
	CARGO=$(CARGO) scripts/fuzz $(or $(MINUTES),1) $(TARGET)

doctor: packages ## Tell what this host can do, and why not
	@scripts/preflight cargo
	$(CARGO) run --locked --quiet --release --package romulus -- doctor

packages:
	@scripts/install-packages

lab-packages:
	@scripts/install-packages lab
