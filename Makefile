# What people type. Everything else is `replicate --help`.
SCALE  ?= mini
DEVICE ?= cpu
SEED   ?= $(or $(SEEDS),0)
STORE  ?= $(or $(REPLICATE_STORE),store)
DATA   ?=
ROWS   ?=
FEATURES ?=

REPLICATE = cargo run --release --locked --quiet $(if $(FEATURES),--features $(FEATURES)) --
# Reports choose their scale by what the store has, unless one is given.
GIVEN = $(if $(filter file,$(origin SCALE)),,--scale $(SCALE))
ANYWHERE = --device $(DEVICE) --store $(STORE) $(if $(DATA),--data $(DATA))
PLACE = --scale $(SCALE) $(ANYWHERE)

.PHONY: table1 table2 figures report check claims plan selftest standin drill test build

table1 table2: build
	$(REPLICATE) run $(or $(ROWS),$@) $(PLACE) --seed $(SEED)

figures report: build
	$(REPLICATE) $@ $(GIVEN) $(ANYWHERE)

check: build
	$(REPLICATE) check all $(PLACE) --against golden

# What SCALE would run, fetch and cost, and whether it can work here.
plan: build
	$(REPLICATE) run all $(PLACE) --seed $(SEED) --dry-run

# Whether DEVICE gives what it should, and how fast.
selftest: build
	$(REPLICATE) selftest --device $(DEVICE)

# The GPU's program on a machine without one; CUDA_HOME names the toolkit.
standin:
	cargo build --release --locked --features cudnn
	tests/standin/run target/release/replicate selftest --device cuda:0 --reduced

# The paper scale's path for every cell, with small files from a local server.
drill:
	cargo test --release --locked --test drill -- --nocapture

claims: build
	$(REPLICATE) check all $(PLACE) --against claims

test:
	cargo test --release --locked $(if $(FEATURES),--features $(FEATURES))

build:
	cargo build --release --locked $(if $(FEATURES),--features $(FEATURES))
