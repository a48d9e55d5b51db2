# The tools run at pinned versions by way of `go run`, so nothing has to be
# installed but Go.
BUF           := go run github.com/bufbuild/buf/cmd/buf@v1.75.0
GOLANGCI_LINT := go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: help build test check lint proto rewrite fuzz
help: ## Show this list.
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/'

build: ## Build the static binary ./pemba.
	CGO_ENABLED=0 go build -trimpath -o pemba ./cmd/pemba

test: ## Run the tests.
	go test ./...

check: lint ## Everything that CI checks of the code: lint, generated code, race detector.
	$(BUF) lint
	$(MAKE) proto && git diff --exit-code -- api cluster
	go mod tidy -diff
	go list ./... | grep -v /faulttest | xargs go test -race

lint: ## Run the linters.
	$(GOLANGCI_LINT) run

proto: ## Generate the Go code of the protocol.
	$(BUF) generate
	$(BUF) generate --template buf.gen.peer.yaml

rewrite: ## Rewrite the expected output of the scripts; read the diff before committing.
	go test ./schema ./graph ./engine ./api -rewrite

fuzz: ## Fuzz everything that reads bytes from outside, a minute each.
	@for p in $$(go list ./...); do for f in $$(go test -list '^Fuzz' $$p | grep ^Fuzz); do \
	  echo "$$p $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime 60s $$p || exit 1; done; done
