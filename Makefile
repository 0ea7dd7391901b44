# make demo    everything from nothing to pods of every sandboxer, in a table
# make test    all that the CI runs
# make help    the rest

SHELL := /bin/sh
.DEFAULT_GOAL := build
.NOTPARALLEL:

GO ?= go
# What the module pins is what there is to build with.
export GOFLAGS := -mod=readonly -buildvcs=false $(GOFLAGS)
# Where hack/guest puts vhost-device-vsock.
export PATH := $(PATH):$(CURDIR)/build/vsock

CONTAINERD := github.com/containerd/containerd/v2
REVISION := $(shell git describe --always --tags --dirty 2>/dev/null || echo unknown)
VERSION := $(shell sed -n 's|^.*$(CONTAINERD) \(v[^ ]*\).*|\1|p' go.mod)+kuasar.$(REVISION)
LDFLAGS := -s -w \
	-X $(CONTAINERD)/version.Package=github.com/containerd-kuasar/containerd-kuasar \
	-X $(CONTAINERD)/version.Version=$(VERSION) \
	-X $(CONTAINERD)/version.Revision=$(REVISION)

AGENTFLAGS := -s -w -X main.version=$(VERSION) -extldflags "-static"

# Packages whose tests start the daemon.
INTEGRATION := ./test/bed/... ./test/e2e/... ./test/restart/... ./test/critest/...

.PHONY: help
help: ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 16

.PHONY: install
install: ## install the packages that building and testing need
	@hack/install

.PHONY: build
build: ## build bin/: the daemon, the agent, Wasmtime's runner, kuasar-ctl, and the stock shim and ctr
	@$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/containerd-kuasar ./cmd/containerd-kuasar
	@CGO_ENABLED=1 $(GO) build -trimpath -tags 'seccomp netgo osusergo' -ldflags '$(AGENTFLAGS)' -o bin/kuasar-task ./cmd/kuasar-task
	@CGO_ENABLED=1 $(GO) build -trimpath -tags 'netgo osusergo' -ldflags '-s -w -extldflags "-static -Wl,--no-warnings"' -o bin/kuasar-wasmtime ./cmd/kuasar-wasmtime
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS) -X main.version=$(VERSION)' -o bin/kuasar-ctl ./cmd/kuasar-ctl
	@$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/containerd-shim-runc-v2 $(CONTAINERD)/cmd/containerd-shim-runc-v2
	@$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ctr $(CONTAINERD)/cmd/ctr

.PHONY: guest
guest: agent ## build build/guest: the kernel and initramfs of virtual machines
	@hack/guest
	@$(GO) run ./guest/make -package build/kernel -agent build/agent/kuasar-task -version '$(VERSION)' -out build/guest

.PHONY: guest-kernel
guest-kernel: agent ## compile a minimal kernel, and build build/guest-minimal with it
	@hack/guest-kernel
	@$(GO) run ./guest/make -package build/kernel-minimal -agent build/agent/kuasar-task -version '$(VERSION)' -out build/guest-minimal

.PHONY: agent
agent:
	@CGO_ENABLED=1 $(GO) build -trimpath -tags 'guest seccomp netgo osusergo' -ldflags '$(AGENTFLAGS)' -o build/agent/kuasar-task ./cmd/kuasar-task

.PHONY: bed
bed: build guest ## build build/: what the tests run beside bin/
	@hack/cri-tools
	@mkdir -p build/images
	@$(GO) build -trimpath -o build/containerd $(CONTAINERD)/cmd/containerd
	@CGO_ENABLED=1 $(GO) build -race -trimpath -ldflags '$(LDFLAGS)' -o build/race/containerd-kuasar ./cmd/containerd-kuasar
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o build/images/ ./test/images/web ./test/images/privs
	@gcc -static -Os -s -o build/images/pause test/images/pause/pause.c
	@hack/modules

.PHONY: lint
lint: ## check formatting, vet, and the rules of .golangci.yml that need no golangci-lint
	@unformatted=$$(gofmt -l $$(git ls-files '*.go' 2>/dev/null || find . -name '*.go')); \
		if [ -n "$$unformatted" ]; then echo "gofmt -w $$unformatted"; exit 1; fi
	@$(GO) vet ./...
	@$(GO) test -count=1 ./test/layout
	@if command -v golangci-lint >/dev/null; then golangci-lint run; fi

.PHONY: unit
unit: ## run the tests beside the code with the race detector
	@$(GO) test -race -timeout 10m $$($(GO) list ./... | grep -v -e /test/bed -e /test/e2e -e /test/restart -e /test/critest)

.PHONY: integration
integration: bed ## run the real daemon with real pods, and critest
	@$(GO) test -count=1 -p 1 -timeout 30m $(INTEGRATION)

# Tests beside the code of what differs on the lab's kernel and cgroups.
LAB := ./internal/cgroup ./internal/pidfd ./task/container ./task/oom ./task/stats
LABTESTS := $(CURDIR)/build/lab/tests
# Built without the race detector: the machine is slow enough.
TESTLAB := cd test/e2e && KUASAR_TEST_DAEMON=$(CURDIR)/bin/containerd-kuasar $(LABTESTS)/e2e.test -test.run TestLab -test.v

.PHONY: lab-pods
lab-pods: bed ## test pods on KVM, vhost-vsock and cgroup v2, in an emulated machine
	@mkdir -p $(LABTESTS)
	@$(GO) build -o build/lab/lab ./test/lab
	@$(GO) test -c -o $(LABTESTS)/ ./test/lab/inside ./test/e2e
	@KUASAR_HANDLERS=kuasar-runc,kuasar-vmm build/lab/lab -timeout 10m -- sh -ec '$(LABTESTS)/inside.test; $(TESTLAB) -test.short'

.PHONY: lab
lab: lab-pods ## all that is tested there: systemd, more of machines, the tests beside the code on its kernel
	@$(GO) test -c -o $(LABTESTS)/ $(LAB) ./cmd/kuasar-task
	@build/lab/lab -timeout 10m -- sh -ec 'for d in $(LAB); do cd $$d; $(LABTESTS)/$${d##*/}.test -test.timeout 5m; cd $(CURDIR); done; \
		cd cmd/kuasar-task; KUASAR_TEST_AGENT=$(CURDIR)/bin/kuasar-task $(LABTESTS)/kuasar-task.test -test.run TestCheckpoint'
	@KUASAR_HANDLERS=kuasar-vmm build/lab/lab -timeout 10m -- sh -ec '$(TESTLAB)'
	@KUASAR_HANDLERS=kuasar-runc build/lab/lab -timeout 10m -systemd -- sh -ec '$(TESTLAB)'

.PHONY: test
test: install bed lint unit lab-pods integration ## all that the CI runs

.PHONY: critest-docs
critest-docs: bed ## write docs/critest.md
	@$(GO) test -count=1 -timeout 20m ./test/critest -update

.PHONY: demo
demo: install bed ## run pods of every sandboxer and show them
	@$(GO) run ./test/demo

.PHONY: bench
bench: install bed ## compare with the stock runtime, write docs/bench.json, bench.svg and phases.svg
	@$(GO) run ./test/bench

.PHONY: generate
generate: ## generate what is made from other files
	@$(GO) generate ./...

.PHONY: clean
clean: ## remove what was built
	@rm -rf bin build
