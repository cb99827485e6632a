# overlayd. "make demo" shows it, "make test" proves it; the others are for who works on it.

GO ?= go
GOLANGCI_VERSION := v2.15.0
RELEASE ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
STATIC := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.release=$(RELEASE)'

.PHONY: build test lint demo bench fmt tools

# The two programs that a host needs, static: bin/overlayd (the daemon) and bin/overlay (the CNI plugin).
build:
	$(STATIC) -o bin/overlayd ./cmd/overlayd
	$(STATIC) -o bin/overlay ./cni

# All tests, with the race detector. As root nothing is skipped; otherwise what was skipped says why.
test: tools
	$(GO) vet ./...
	$(GO) test -race -timeout 20m ./...

# The walls between rooms and the habits of the house (.golangci.yml).
lint:
	@test -x bin/golangci-lint && bin/golangci-lint version | grep -q '$(GOLANGCI_VERSION:v%=%)' || \
		GOBIN=$(CURDIR)/bin $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	bin/golangci-lint run ./...

# Three hosts with two pods each on this machine, and what they hold. KEEP=1 stays up until ^C and says what to try.
demo: build
	$(GO) build -o bin/demo ./e2e/demo
	@bin/demo --binaries bin $(if $(KEEP),--keep)

# Time and memory, as ratios to something measured beside it in the same run.
bench:
	@e2e/tools.sh bench
	$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 40m ./e2e ./backend/kernel ./cni

# Go's own layout for all files.
fmt:
	$(GO) fmt ./...

# What tests need besides Go: installed as root on Debian and Ubuntu, named elsewhere.
tools:
	@e2e/tools.sh
