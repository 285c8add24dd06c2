# Every way to build, try and check Kiln. The work is done by scripts/; `make` alone lists what there is.
# VERBOSE=1 shows everything; T=seconds bounds `make fuzz`.
export VERBOSE T

.DEFAULT_GOAL := help
.PHONY: help demo build test test-quick soak bench fuzz coverage sanitize watch install-deps

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: ## Install what is missing, build, boot a VM, run commands in it
	@scripts/demo.sh

build: ## Build kiln (release) and the static guest agent
	@scripts/build.sh

test: ## Every test there is, real VMs included (at most 25 min from nothing on 2 cores)
	@scripts/test.sh

test-quick: ## Units, properties and the protocol suite; no VMs (at most 60 s once built)
	@scripts/test-quick.sh

soak: ## Long campaigns in real VMs
	@scripts/soak.sh

bench: ## Measure everything; raw samples go to docs/benchmarks/
	@scripts/bench.sh

fuzz: ## Fuzz every parser, T seconds in all (default 60)
	@scripts/fuzz.sh

coverage: ## Line coverage report; wire, detect and agent must have 80 %
	@scripts/coverage.sh

sanitize: ## The agent's protocol suite under the address sanitizer
	@scripts/sanitize.sh

watch: ## Run test-quick whenever a source file changes
	@scripts/watch.sh

install-deps: ## Install everything that the targets above need
	@scripts/install.sh build run test backends fuzz coverage
