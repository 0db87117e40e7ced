# Rookery. `sudo make up` and `sudo make test` are all that a fresh Debian 12
# machine needs; each installs what is missing first.

SHELL      := /bin/bash -o pipefail
GO_VERSION := 1.26.8
export PATH := $(PATH):/usr/local/go/bin
export CGO_ENABLED := 0
# grpcnotrace: its trace page pulls in text/template, which turns off dead-code
# elimination (12 MB of binary). The others keep C libraries out of the Podman bindings.
TAGS       := containers_image_openpgp,exclude_graphdriver_btrfs,exclude_graphdriver_devicemapper,remote,grpcnotrace
export GOFLAGS := -trimpath -buildvcs=false -tags=$(TAGS)
VERSION    := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
KUBERNETES := $(shell sed -n 's/^\tk8s.io\/kubernetes \(v[0-9.]*\).*/\1/p' go.mod)
STAMP      := -s -w -X main.version=$(VERSION) \
  -X k8s.io/component-base/version.gitVersion=$(KUBERNETES)+rookery \
  -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$(word 2,$(subst ., ,$(KUBERNETES)))
BENCH      ?= .
PREFIX     ?= /usr/local
# Packages that link the whole of Kubernetes are tested apart: with -race they take minutes to compile.
HEAVY      := ./apiserver/... ./controller/... ./scheduler/... ./cmd/...
LIGHT       = $(shell go list ./... | grep -vE '/(apiserver|controller|scheduler|cmd|test)(/|$$)')

REPORT     := | awk -f test/report.awk
FOR        ?= 10m
KILLS      ?= 200

.PHONY: build up down deps deps-test test unit lab-test kills check bench fuzz clean

build: deps-go bin/rookery bin/lab bin/hello.tar bin/busybox.tar

SOURCES := go.mod go.sum $(shell find . -name '*.go' -not -name '*_test.go' -not -path './internal_seed/*') $(shell find apiserver -name '*.gz' 2>/dev/null)

bin/rookery: $(SOURCES) cmd/rookery/kubectl/kubectl.zst
	go build -ldflags '$(STAMP)' -o $@ ./cmd/rookery
	ln -sf rookery bin/kubectl

# kubectl is compiled apart, so that the daemon has none of its memory.
cmd/rookery/kubectl/kubectl.zst: go.mod go.sum cmd/kubectl/main.go
	go build -ldflags '$(STAMP)' -o bin/.kubectl ./cmd/kubectl
	zstd -q -12 -f bin/.kubectl -o $@ && rm bin/.kubectl

bin/lab: $(wildcard cmd/lab/*.go test/lab/*.go test/image/*.go) go.mod
	go build -ldflags '-s -w' -o $@ ./cmd/lab

bin/hello.tar: bin/lab $(wildcard configs/samples/hello/*.go)
	go build -ldflags '-s -w' -o bin/hello ./configs/samples/hello
	bin/lab image --name localhost/hello:1 --name localhost/hello:2 --entrypoint /hello --file /hello=bin/hello $@

bin/busybox.tar: bin/lab
	bin/lab image --name localhost/busybox:1 --file /bin/busybox=/bin/busybox --applets /bin/busybox $@

up: deps build
	PREFIX=$(PREFIX) configs/samples/up.sh

down:
	PREFIX=$(PREFIX) configs/samples/down.sh

deps:
	configs/deps.sh $(GO_VERSION)

deps-test:
	configs/deps.sh $(GO_VERSION) test

deps-go:
	@command -v go >/dev/null || { echo "there is no Go on PATH: run \`sudo make deps\`" >&2; exit 1; }

test: deps-test build unit lab-test

# Without root or Podman these fail: a test that is skipped in silence proves nothing.
unit: deps-go
	CGO_ENABLED=1 go test -race -count=1 -timeout 40m $(LIGHT) 2>&1 $(REPORT)
	go test -count=1 -timeout 20m $(HEAVY) 2>&1 $(REPORT)
	cd third_party/inf && go test -count=1 .

# Helm is a module of its own: nothing of it is in the binary or its go.mod.
bin/helm3 bin/helm4: bin/helm%: test/helm/go.mod test/helm/go.sum
	cd test/helm && go build -ldflags '-s -w' -o ../../$@ helm.sh/helm/v$*/cmd/helm

lab-test: build bin/helm3 bin/helm4
	go test -count=1 ./test/bench ./test/image ./test/lab ./test/registry 2>&1 $(REPORT)
	go test -count=1 -timeout 60m -v ./test/e2e 2>&1 $(REPORT)
	go test -count=1 -timeout 20m -v ./test/families 2>&1 $(REPORT)
	go test -count=1 -timeout 20m -v ./test/hidden 2>&1 $(REPORT)
	go test -count=1 -timeout 40m -v ./test/survive 2>&1 $(REPORT)

# The daemon killed at random moments while it starts a pod, as often as is promised.
kills: build
	ROOKERY_KILLS=$(KILLS) go test -count=1 -timeout 0 -v -run '^TestKilledWhileStarting$$' ./test/survive 2>&1 $(REPORT)

check: deps-go
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	go mod tidy -diff
	cd test/helm && go mod tidy -diff
	cd test/bench/coredns && go mod tidy -diff
	go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...
# A finding fails; a database out of reach does not, but nobody shall take that for a pass.
	@out=$$(go run golang.org/x/vuln/cmd/govulncheck@v1.9.0 ./... 2>&1); rc=$$?; echo "$$out"; \
	if (( rc )) && grep -q '^govulncheck: fetching vulnerabilities' <<<"$$out"; then \
		echo '*** WARNING: the vulnerability database could not be reached: NOTHING was checked for known vulnerabilities ***' >&2; \
	else exit $$rc; fi

# The API under random requests, then the DNS server under random packets, each so long; make fuzz
# FOR=1h goes on longer. What failed is printed with its seed, or kept in testdata.
fuzz: deps-go
	FUZZ_FOR=$(FOR) go test -count=1 -timeout 0 -v -run TestFuzz ./apiserver/apifuzz
	set -e; for f in FuzzParse FuzzHandle FuzzSocket; do go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FOR) ./dnsserver; done

bench: build
	go run ./test/bench -bin bin -run '$(BENCH)'

clean:
	rm -rf bin cmd/rookery/kubectl/kubectl.zst
