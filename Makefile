# Every target needs Go, git and make; the tests also need rsync, as an independent judge.
GO     ?= go
SEEDS  ?= 10000
FROM   ?= 0
DURATION ?= 30m
FUZZ   ?= 30s
BINARY := bin/lockstep

.PHONY: help build test race demo sim mutants track-record torture bench bench-engine lint fmt fuzz

help: ## print this list
	@echo 'make TARGET:'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/lockstep
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BINARY) ./cmd/lockstep

test: ## all tests, with vet, staticcheck, formatting and the import rules
	$(GO) test -timeout 20m ./...

race: ## all tests under the race detector
	$(GO) test -race -short -timeout 40m ./...

demo: build ## a whole cluster on this machine, on real files
	$(BINARY) demo

sim: ## the simulator over SEEDS=n seeds (10000)
	$(GO) test ./internal/sim -run '^TestSim$$' -count=1 -timeout 0 -v -sim.from=$(FROM) -sim.seeds=$(SEEDS)

track-record: ## the simulator over the next SEEDS=n seeds, written into docs/TRACK_RECORD.md
	$(GO) test ./internal/sim -run '^TestSim$$' -count=1 -timeout 0 -v -sim.record -sim.seeds=$(SEEDS)

mutants: ## the bugs planted for the simulator, each of which it must catch
	$(GO) test ./internal/sim -run '^TestMutants$$' -count=1 -timeout 0 -v -sim.mutants -sim.record

torture: ## real processes killed, stopped, cut off, out of space, with wrong clocks, for DURATION=d (30m)
	$(GO) test ./test -run '^TestTorture$$' -count=1 -timeout 0 -v -torture.duration=$(DURATION)

bench: build ## everything, side by side with the peers that are installed
	$(GO) run ./bench -lockstep $(BINARY)

bench-engine: build ## the engine alone, beside etcd and ZooKeeper
	$(GO) run ./bench -lockstep $(BINARY) -only engine -runs 5

lint: ## vet and staticcheck
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

fmt: ## format all sources
	gofmt -w $$(git ls-files '*.go')

fuzz: ## every fuzz target for FUZZ=d (30s)
	@set -e; for file in $$(git ls-files '*_test.go' | xargs grep -l '^func Fuzz'); do \
	  for name in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' $$file); do \
	    echo "$$(dirname $$file) $$name"; \
	    $(GO) test ./$$(dirname $$file) -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZ); \
	  done; \
	done
