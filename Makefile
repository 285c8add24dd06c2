# Builds, tries and checks Kiln. The scripts in scripts/ do the work; `make` alone lists the targets.
# VERBOSE=1 shows everything; T=seconds bounds `make fuzz`.
export VERBOSE T

.DEFAULT_GOAL := help
.PHONY: help demo build test test-quick soak bench fuzz coverage sanitize watch install-deps

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: ## Install what is missing, build, boot a VM, run commands in it
	@scripts/demo.sh

build: ## Build kiln (release) and the static guest agent
	@scripts/build.sh

test: ## All tests, real VMs included (at most 25 min from nothing on 2 cores)
	@scripts/test.sh

test-quick: ## Units, properties and the protocol suite; no VMs (at most 60 s once built)
	@scripts/test-quick.sh

soak: ## Long campaigns in real VMs
	@scripts/soak.sh

bench: ## Measure all that is promised; raw samples go to docs/benchmarks/
	@scripts/bench.sh

fuzz: ## Fuzz every parser, T seconds in all (default 60)
	@scripts/fuzz.sh

coverage: ## Line coverage report; fails if wire, detect or agent is below 80 %
	@scripts/coverage.sh

sanitize: ## Protocol suite with the agent under the address sanitizer
	@scripts/sanitize.sh

watch: ## Run test-quick after each change of a source file
	@scripts/watch.sh

install-deps: ## Install everything that the targets above need
	@scripts/install.sh build run test backends images fuzz coverage
