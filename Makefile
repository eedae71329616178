# The same commands as package.json's, for those whose fingers type make.
.PHONY: build debug server demo test lint clients package pack bench fuzz

build: ## the addon, as it is published
	npm run build
debug: ## the addon and kiro-server, for tests
	npm run build:debug
server: ## kiro-server alone
	npm run build:server
demo: ## an answer from the simulator
	npm run demo
test: ## everything
	npm test
lint: ## the gates beside the tests
	npm run lint
clients: ## real clients against the server
	npm run test:clients
package: ## the npm packages as they are released, for this machine
	npm run test:package
pack: ## tarballs of what npm/ has binaries for
	npm run pack
bench: ## figures beside their baselines
	npm run bench
fuzz: ## a minute for each target
	npm run fuzz -- 60
