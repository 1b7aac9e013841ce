# `make` alone lists what there is.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory

export GOFLAGS := -buildvcs=false
# The path where other builds of the tree put their binaries must not end up in ours.
BUILD := CGO_ENABLED=0 go build -trimpath
TOOLS := $(CURDIR)/.cache/tools
STATICCHECK := $(TOOLS)/staticcheck-v0.8.2
DEPGUARD    := $(TOOLS)/depguard-v2.3.0
EMBEDDED    := internal/kernel/initbin/files/spore-init.gz

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort -s -k1,1 | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.PHONY: deps
deps: ## install the Debian packages that are missing
	@.ci/deps

.PHONY: build
build: deps ## build bin/spore and bin/spore-init
	@mkdir -p bin
	@GOOS=linux GOARCH=amd64 $(BUILD) -ldflags='-s -w' -o bin/spore-init ./cmd/spore-init
	@gzip -9nc bin/spore-init >bin/spore-init.gz
	@cmp -s bin/spore-init.gz $(EMBEDDED) || cp bin/spore-init.gz $(EMBEDDED)
	@rm bin/spore-init.gz
	@$(BUILD) -ldflags='-s -w' -o bin/spore ./cmd/spore

.PHONY: test
test: build lint testbed ## everything: lint, unit and VM tests, simulation, KVM lab
	@$(MAKE) -j2 -o build units servers simulate lab PROCESSORS=1 STEPS=kvm,engine,lifecycle

# Two of these run at a time, each made so that it keeps one processor busy. Whole servers and their VMs take longest; every
# package that is in them has tests of its own with the race detector. The target testbed has tested what it made.
SERVERS := ./internal/daemon ./internal/bench

.PHONY: servers
servers: ## the tests of whole servers
	go test -p 1 -timeout 40m $(SERVERS)

.PHONY: units
units: ## the tests of single packages, with the race detector
	go test -race -p 1 -timeout 40m $$(go list ./... | grep -vFx "$$(go list $(SERVERS) ./internal/testbed)")

.PHONY: lint
lint: $(STATICCHECK) $(DEPGUARD) ## gofmt, vet, staticcheck, and the floors of the house
	@unformatted=$$(find . -path './.*' -prune -o -name '*.go' -print0 | xargs -0 gofmt -l); \
	  [ -z "$$unformatted" ] || { echo "not formatted:"; echo "$$unformatted"; exit 1; }
	go vet ./...
	go vet -tags lab ./lab
	$(STATICCHECK) ./...
	$(DEPGUARD) -test=false ./...

.PHONY: testbed
testbed: deps ## make the guest kernel and images that the tests use
	@echo "making what the tests run on (kept in .cache/testbed)"
	@go test -timeout 20m ./internal/testbed

.PHONY: demo
demo: build ## from an image to forked and committed sandboxes, with times
	@demo/run.sh

.PHONY: bench
bench: build ## measure, beside the floors, into bench/results
	@bench/run.sh

.PHONY: lab
lab: build ## engines and lifecycles on a KVM that works (STEPS=kvm,engine,lifecycle,network,versions; SPORE_FIRECRACKER_DIR=DIR)
	go test -tags lab -count=1 -timeout 60m -v ./lab -steps='$(STEPS)'

.PHONY: simulate
simulate: ## SEEDS (10000) runs of the center in a simulated world where everything goes wrong
	GOMAXPROCS=$(or $(PROCESSORS),$$(nproc)) go test -count=1 -timeout 30m -run 'TestSeeds|TestReplay' ./internal/center/centersim -seeds=$(or $(SEEDS),10000)

.PHONY: soak
soak: testbed ## memory and disk agree after ROUNDS (200) rounds of snapshot, fork and rollback, on ext4 and XFS
	SPORE_TEST_ROUNDS=$(or $(ROUNDS),200) go test -count=1 -timeout 90m -v -run TestMemoryAndDiskAgree ./internal/daemon

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (5s)
	@.ci/fuzz $(or $(FUZZTIME),5s)

.PHONY: clean
clean: ## remove what was built and cached
	rm -rf bin .cache $(EMBEDDED)

# Tools are kept apart from go.mod, so that they decide nothing about what Spore is built from.
$(TOOLS)/staticcheck-%:
	@GOBIN=$(TOOLS)/new go install honnef.co/go/tools/cmd/staticcheck@$* && mv $(TOOLS)/new/staticcheck $@

$(TOOLS)/depguard-%:
	@GOBIN=$(TOOLS)/new go install github.com/OpenPeeDeeP/depguard/v2/cmd/depguard@$* && mv $(TOOLS)/new/depguard $@
