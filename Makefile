# Plinth's entrances: `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# One set of flags for every target, so that building, testing and vetting share what the compiler made: the API server
# takes minutes. The race detector alone needs cgo.
export CGO_ENABLED := 0
export GOFLAGS     := $(strip $(GOFLAGS) -trimpath)

GO         ?= go
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT     ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
PROGRAM    := plinth.dev/plinth/cmd/internal/program
LDFLAGS    := -s -w -X $(PROGRAM).Version=$(VERSION) -X $(PROGRAM).Commit=$(COMMIT)
STATICCHECK    := honnef.co/go/tools/cmd/staticcheck@v0.8.2
CONTROLLER_GEN := sigs.k8s.io/controller-tools/cmd/controller-gen@v0.21.0

# Programs that a target runs, and the Debian packages that have them.
RUNTIME_PROGRAMS := mkfs.xfs mkfs.ext4 blkid losetup
TEST_PROGRAMS    := $(RUNTIME_PROGRAMS) qemu-img bwrap xz zstd bzip2 mkfs.btrfs curl gcc node npm
PACKAGES         := xfsprogs e2fsprogs util-linux mount qemu-utils bubblewrap xz-utils zstd bzip2 btrfs-progs curl gcc libc6-dev nodejs npm

# What the clusters of test/e2e are made of beside Go modules.
E2E_PROGRAMS := containerd runc /usr/lib/cni/bridge busybox ip nsenter openssl qemu-img mkfs.xfs mkfs.ext4 bwrap
E2E_PACKAGES := containerd runc containernetworking-plugins busybox-static iproute2 procps ca-certificates openssl dash $(PACKAGES)
E2E           = cd test/e2e && $(GO) test -count=1 -v -plinth '$(abspath bin/plinth)' -logs '$(abspath bin/e2e)'

# Programs that tests run, kept in the user's cache: servers that speak S3 and Cloud Storage, which take minutes to build, one that speaks
# Blob Storage, and a registry, unpacked from its Debian package because installing that would start a service, for the tests of
# sources and backups; and for those of deploy, what renders it.
VERSITYGW         := v1.8.0
FAKEGCS           := v1.52.2
AZURITE           := 3.35.0
KUSTOMIZE         := v5.8.0
HELM              := v3.22.0
TOOLS             := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/plinth/tools
VERSITYGW_PROGRAM := $(TOOLS)/versitygw-$(VERSITYGW)
FAKEGCS_PROGRAM   := $(TOOLS)/fake-gcs-server-$(FAKEGCS)
AZURITE_PROGRAM   := $(TOOLS)/azurite-blob-$(AZURITE)
REGISTRY_PROGRAM  := $(or $(shell command -v docker-registry),$(TOOLS)/docker-registry)
KUSTOMIZE_PROGRAM := $(TOOLS)/kustomize-$(KUSTOMIZE)
HELM_PROGRAM      := $(TOOLS)/helm-$(HELM)

# Packages that the race detector watches: those with concurrency of their own that build without the API server.
RACE ?= ./backingimage ./backingimage/cluster ./backingimage/command/... ./backingimage/controller ./backingimage/credential/... ./backingimage/disk/... ./backingimage/durable/... ./backingimage/fetch/... ./backingimage/format/... \
	./backingimage/manifest/... ./backingimage/parallel/... ./backingimage/placement/... ./backingimage/reconcile/... ./backingimage/source/... ./backingimage/transfer/... ./provisioner/backup/... ./provisioner/engine/...

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: deps build ## Try it: a real QCOW2 image to two mounted volumes in a temporary directory (needs root)
	@$(GO) run ./test/demo -plinth bin/plinth

.PHONY: build
build: ## Build the static binaries bin/plinth, and bin/plinth-standalone and bin/plinth-buckets, which it runs
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/plinth ./cmd/plinth-standalone ./cmd/plinth-buckets

.PHONY: test
test: deps tools ## Run every test; without root, say what is left out
	@if [ "$$(id -u)" = 0 ]; then set -x; $(GO) test -timeout 15m ./...; else \
	  echo "Not root: what needs mounts and loop devices is left out, and listed below."; \
	  $(GO) test -v -timeout 15m ./... 2>&1 | awk '/^(ok|FAIL|panic)|--- FAIL/ { print } \
	    /left out/ { sub(/^ *[a-z_]+\.go:[0-9]+: /, ""); n[$$0]++ } END { for (m in n) print m " (" n[m] " tests)" }'; fi
	@if command -v gcc >/dev/null; then set -x; \
	  CGO_ENABLED=1 $(GO) test -race -short -timeout 10m $$($(GO) list -e -f '{{if not .Error}}{{.ImportPath}}{{end}}' $(RACE)); \
	else echo "No gcc: the race detector is left out."; fi

.PHONY: nightly
nightly: ## Hold the plan of copies against a million random clusters, and fuzz it for ten minutes
	PLINTH_PLAN_CASES=1000000 $(GO) test -count=1 -timeout 3h -run 'TestPlan' -v ./backingimage/controller
	$(GO) test -run '^$$' -fuzz FuzzPlan -fuzztime 10m ./backingimage/controller

.PHONY: crash
crash: deps tools ## Kill backups, restores and collections of garbage many times over (needs root)
	PLINTH_CRASH_ROUNDS=40 $(GO) test -count=1 -timeout 2h -run 'Kill' -v ./provisioner/backup ./cmd/plinth

.PHONY: sanity
sanity: deps ## Run csi-sanity over the real server, engine and API
	$(GO) test -count=1 -timeout 15m -run 'Sanity' -v ./csi/...

.PHONY: e2e
e2e: e2e-deps build $(HELM_PROGRAM) ## Run Plinth in a real Kubernetes of three nodes, built once into the user's cache (needs root); see test/e2e
	$(E2E) -timeout 90m .

.PHONY: e2e-smoke
e2e-smoke: e2e-deps build ## The same, for a few minutes: what must never break
	$(E2E) -timeout 30m -run '^TestSmoke' .

.PHONY: e2e-remote
e2e-remote: $(HELM_PROGRAM) ## The same tests in a cluster that has Plinth: KUBECONFIG=…, SERVE_IMAGES_AT=host:port of this machine, NAMESPACE=…, TEST_IMAGE=…
	@[ -n '$(KUBECONFIG)' ] || { echo "Say which cluster: make e2e-remote KUBECONFIG=…; see test/e2e/README.md"; exit 1; }
	$(E2E) -timeout 90m -kubeconfig '$(abspath $(KUBECONFIG))' -serve-images-at '$(SERVE_IMAGES_AT)' $(if $(NAMESPACE),-namespace '$(NAMESPACE)') $(if $(TEST_IMAGE),-test-image '$(TEST_IMAGE)') .

.PHONY: e2e-shell
e2e-shell: e2e-deps build ## A shell with kubectl in such a cluster, which ends with it
	cd test/e2e && $(GO) test -c -o ../../bin/e2e.test . && ../../bin/e2e.test -shell

.PHONY: bench
bench: deps build ## Measure against the bare system calls, curl and qemu-img; print a table of ratios (needs root)
	$(GO) run ./test/bench -plinth bin/plinth

.PHONY: bench-e2e
bench-e2e: e2e-deps build ## Measure in the cluster of make e2e, against pods without a volume and empty volumes; print a table of ratios (needs root)
	$(E2E) -timeout 90m -run '^$$' -bench . -benchtime 1x .

.PHONY: lint
lint: ## Check formatting, vet and staticcheck
	@unformatted=$$(gofmt -l cmd csi provisioner backingimage deploy test); \
	  [ -z "$$unformatted" ] || { echo "gofmt these files: $$unformatted"; exit 1; }
	$(GO) vet ./...
	cd test/e2e && $(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

.PHONY: generate
generate: ## Regenerate the CRDs and deepcopy functions, and the references of commands and of the chart
	$(GO) run $(CONTROLLER_GEN) object crd paths=./backingimage/api/... output:crd:dir=deploy/crds
	$(GO) test ./cmd/plinth -run TestReferenceOfCommands -update
	$(GO) test ./deploy -run 'OfValues' -update

.PHONY: verify
verify: ## Fail when generated files, go.mod or the layers are out of date
	@bash test/verify.sh '$(GO)' '$(CONTROLLER_GEN)'
	$(GO) mod tidy -diff
	$(GO) test -count=1 ./test

.PHONY: deps
deps: ## Install the Debian packages that tests and the demo use, when root; else say which are missing
	@missing=; for p in $(TEST_PROGRAMS); do PATH="$$PATH:/usr/sbin:/sbin" command -v $$p >/dev/null || missing="$$missing $$p"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Missing:$$missing. Installing $(PACKAGES)."; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES) >/dev/null; \
	else echo "Missing:$$missing. Tests that need them are left out; as root: apt-get install $(PACKAGES)"; fi

.PHONY: e2e-deps
e2e-deps: ## Install the Debian packages that the clusters of test/e2e need (needs root)
	@missing=; for p in $(E2E_PROGRAMS); do PATH="$$PATH:/usr/sbin:/sbin" command -v $$p >/dev/null || missing="$$missing $$p"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	echo "Missing:$$missing. Installing $(E2E_PACKAGES)."; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(E2E_PACKAGES) >/dev/null

.PHONY: tools
tools: $(VERSITYGW_PROGRAM) $(FAKEGCS_PROGRAM) $(AZURITE_PROGRAM) $(REGISTRY_PROGRAM) $(KUSTOMIZE_PROGRAM) $(HELM_PROGRAM) ## Bring the programs that tests run into the user's cache

# install-tool is the recipe of a program made by go install: $(1) the package, $(2) its version, $(3) its name when the package's path ends otherwise.
install-tool = GOBIN=$@.new $(GO) install $(1)@$(2) && mv $@.new/$(or $(3),$(notdir $(1))) $@ && rmdir $@.new

$(VERSITYGW_PROGRAM):
	$(call install-tool,github.com/versity/versitygw/cmd/versitygw,$(VERSITYGW))

$(FAKEGCS_PROGRAM):
	$(call install-tool,github.com/fsouza/fake-gcs-server,$(FAKEGCS))

$(AZURITE_PROGRAM):
	npm install --silent --no-audit --no-fund --omit=dev --prefix $(TOOLS)/npm-azurite-$(AZURITE) azurite@$(AZURITE)
	ln -sf npm-azurite-$(AZURITE)/node_modules/.bin/azurite-blob $@

$(KUSTOMIZE_PROGRAM):
	$(call install-tool,sigs.k8s.io/kustomize/kustomize/v5,$(KUSTOMIZE),kustomize)

$(HELM_PROGRAM):
	$(call install-tool,helm.sh/helm/v3/cmd/helm,$(HELM))

$(TOOLS)/docker-registry:
	mkdir -p $(TOOLS)/new && cd $(TOOLS)/new && rm -f docker-registry_*.deb && \
	  { apt-get download -qq docker-registry || { apt-get update -qq && apt-get download -qq docker-registry; }; } && \
	  dpkg-deb -x docker-registry_*.deb . && mv usr/bin/docker-registry $@ && rm -r $(TOOLS)/new

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin
