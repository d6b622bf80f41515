# What most people need; CMakePresets.json has the debug and sanitizer builds.
.PHONY: all build deps test asan tsan test-gpu test-transformers install fuzz demo needle docs format format-check tidy clean
all: build

# The CUDA backend is built where nvcc is found; `make build CUDA=OFF` does without.
CUDA ?= $(if $(shell command -v nvcc),ON,OFF)

# The libraries and build/msa.
build: deps
	cmake --preset release -DOPENMSA_CUDA=$(CUDA)
	cmake --build --preset release --target msa openmsa_shared

# Does nothing when everything is there.
deps:
	@scripts/install_deps.sh

test: build
	cmake --build --preset release
	ctest --preset release --parallel 2

# The same under the sanitizers, in builds of their own: memory errors and undefined behaviour; data races.
asan tsan: deps
	cmake --preset $@ -DOPENMSA_CUDA=OFF
	cmake --build --preset $@
	ctest --preset $@ --parallel 2

# What needs a Hopper GPU; without one it says skipped.
test-gpu: build
	cmake --build --preset release
	ctest --preset release --label-regex gpu

# The integration with every version of transformers that it serves, about a minute each; needs PyTorch and downloads.
test-transformers:
	test -e build/python/site || .ci/python
	.ci/transformers

# Headers, libraries, CMake and pkg-config files, and msa; `make install PREFIX=/opt/openmsa`.
PREFIX ?= /usr/local
install: build
	cmake --build --preset release --target openmsa_static
	cmake --install build --prefix $(PREFIX)

# Fuzz targets and the program on files that are nearly right, so many seconds each, side by side; what they find they leave
# in build-fuzz. Needs clang.
FUZZ_SECONDS ?= 600
fuzz: deps
	scripts/install_deps.sh clang
	test -e build/CMakeCache.txt || cmake --preset release -DOPENMSA_CUDA=OFF
	cmake --build --preset release --target msa
	cmake --preset fuzz
	cmake --build --preset fuzz
	scripts/fuzz.sh build-fuzz $(FUZZ_SECONDS) build/msa

# Trains, evaluates, measures and reports into demo-out/; see scripts/demo.sh.
# It runs on the CPU: a fresh clone leaves the CUDA backend out to save its compile time.
demo: deps
	test -e build/CMakeCache.txt || cmake --preset release -DOPENMSA_CUDA=OFF
	cmake --build --preset release --target msa
	scripts/demo.sh build/msa demo-out

# The model of examples/needle.py, which then runs in Python; see scripts/needle.sh.
needle: deps
	test -e build/CMakeCache.txt || cmake --preset release -DOPENMSA_CUDA=OFF
	cmake --build --preset release --target msa
	scripts/needle.sh build/msa needle-out

SOURCES = $(shell git ls-files '*.h' '*.hpp' '*.c' '*.cc' '*.cu' '*.cuh')

# docs/api.md, from the public headers; pictures and the tables with the same figures, from docs/data.
docs:
	scripts/api_doc.py
	scripts/figures.py

format:
	clang-format -i $(SOURCES)

# Says what `make format` would change; CI asks.
format-check:
	@clang-format --dry-run --Werror $(SOURCES)

tidy: build
	clang-tidy -p build --quiet $(filter %.cc,$(SOURCES))

clean:
	rm -rf build demo-out needle-out
