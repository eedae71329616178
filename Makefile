# What people do most, under the names they expect. The scripts do the work: package.json, scripts/.
.DEFAULT_GOAL := help
.PHONY: help build debug server test coverage deploy clients package pack lint ci demo bench fuzz docs image

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

build: ## the addon, as it is published
	npm run build

debug: ## the addon and kiro-server, for tests
	npm run build:debug

server: ## target/release/kiro-server
	npm run build:server

test: ## every test, with a redis-server of its own
	npm test

coverage: ## every test once more, instrumented: which lines of src/ and lib/ it reaches
	npm run coverage

deploy: ## deploy/ and the status page with the real nginx, Prometheus and Chromium
	npm run test:deploy

clients: ## the official SDKs against the server
	npm run test:clients

package: ## the npm packages as they are released, for this machine
	npm run test:package

pack: ## tarballs of what npm/ has binaries for
	npm run pack

lint: ## format, clippy, layers, generated files, types, licences
	npm run lint

ci: ## what CI runs
	bash .ci/run

demo: ## an answer from the built-in simulator
	npm run demo

bench: ## figures beside their baselines
	npm run bench

fuzz: ## a minute for each fuzz target
	npm run fuzz -- 60

docs: ## write generated documents again
	KIRO_BLESS=1 cargo test --features server --test docs

image: ## the container image kiro-server
	docker build -f deploy/Dockerfile -t kiro-server .
