# amiss: `make demo` and `make test` set themselves up; nothing else is needed but Python >= 3.11 with pip and venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: demo test arm64 arm64-all soak check bench bench-detect bench-fleet format clean mosquitto chromium systemd strace postgresql qemu compilers packages dist shellcheck zstd chroots image image-boot qemu-system
.DEFAULT_GOAL := help

help:  ## show this
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.demo  ## the main job, end to end, without hardware: learn, compress, run on a serial port, alert over MQTT, push models
	@$(BIN)/amiss demo

# Four at a time: beside a test that computes there are those that wait for a broker, a port, a page or a process of their own.
test: $(VENV)/.dev $(VENV)/tflite-runtime/.done mosquitto chromium systemd strace postgresql compilers shellcheck zstd $(VENV)/openvino/.done $(VENV)/cloud-init/.done  ## the whole test suite, against a real Mosquitto and in a real browser
	@$(BIN)/python -m pytest -n 4 --dist worksteal

arm64: $(VENV)/.dev qemu mosquitto  ## the device's tests on emulated small boards: same scores and events, as many instructions as before
	@$(BIN)/python -m quantize.emulation
	@$(BIN)/python -m pytest tests/arm64

arm64-all: $(VENV)/.dev qemu mosquitto  ## the same, with what waits for brokers, ports and processes; ten minutes
	@$(BIN)/python -m quantize.emulation
	@AMISS_ARM64=all $(BIN)/python -m pytest tests/arm64

packages: $(VENV)/.dev mosquitto chroots  ## everything of `make dist`, built and tried in Debians of its own: install, upgrade, purge …
	@$(BIN)/python -m pytest -s tests/packages

soak: $(VENV)/.dev mosquitto chromium strace  ## what only shows after very many samples, kills and days; docs/reliability.md
	@$(BIN)/python -m pytest -m soak -n 2 --dist worksteal --durations=0 --durations-min=1

check: $(VENV)/.dev  ## style, types, who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(VENV)/.dev  ## the agent against a hand-written loop and the bare runtime; what reliability costs; many streams; a fast sensor; a starter
	@$(BIN)/python -m benchmarks.agent
	@$(BIN)/python -m benchmarks.reliability
	@$(BIN)/python -m benchmarks.streams
	@$(BIN)/python -m benchmarks.serial
	@$(BIN)/python -m benchmarks.starter

bench-fleet: $(VENV)/.dev mosquitto  ## a staged roll-out to 10, 100 and 1,000 devices on one broker
	@$(BIN)/python -m benchmarks.fleet

bench-detect: $(VENV)/.bench  ## how well it finds what is amiss, beside what is simple; $AMISS_DATA holds the sets
	@$(BIN)/python -m benchmarks.detect
	@$(BIN)/python -m benchmarks.bearings
	@$(BIN)/python -m benchmarks.ablation

dist: $(VENV)/.dev chroots  ## wheel, Debian packages, container image and install.sh, with their SHA-256, into dist/
	@$(BIN)/python -m deploy.dist all

image: $(VENV)/.dev qemu-system  ## our own image for an SD card, into dist/; as root, the first time half an hour
	@$(BIN)/python -m deploy.image build

# BOARD=raspi3b: the card itself, in a Raspberry Pi 3. IMAGE=…: one that is there.
image-boot: $(VENV)/.dev qemu-system mosquitto  ## the image on an emulated board: from the card to alert and update
	@if [ -z "$(IMAGE)" ]; then $(MAKE) image; fi
	@IMAGE="$${IMAGE:-$$(ls -t dist/amiss-*-arm64.img.zst | head -n 1)}" BOARD="$(BOARD)" $(BIN)/python -m pytest -x tests/image

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info demo-out bench-out

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "amiss needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	@echo "setting up $(VENV) (once; torch is large)"
	@$(PYTHON) -m venv $(VENV)

# torch goes first and alone: beside other requirements pip may choose another build of it.
$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	@$(PIP) torch==2.13.0
	@$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	@$(PIP) -e '.[dev,bench]'
	@touch $@

# What 32-bit Arm has for a runtime, in a Python of its own: it wants numpy 1. There are wheels up to Python 3.11.
$(VENV)/tflite-runtime/.done: $(VENV)/.dev
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then \
	  $(BIN)/python -m venv $(VENV)/tflite-runtime && \
	  $(VENV)/tflite-runtime/bin/python -m pip install --disable-pip-version-check -q \
	    tflite-runtime==2.14.0 numpy==1.26.4 msgspec==0.22.0; \
	else mkdir -p $(VENV)/tflite-runtime; fi
	@touch $@

# An ONNX Runtime with a provider that computes without a GPU, in a folder of its own: it is called as the other one is.
$(VENV)/openvino/.done: $(VENV)/.dev
	@mkdir -p $(VENV)/openvino
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 14))'; then \
	  $(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --target $(VENV)/openvino onnxruntime-openvino==1.24.1; fi
	@touch $@

# To judge what a card is given. Unpacked and not installed: installed, cloud-init would set up this computer at its next start.
$(VENV)/cloud-init/.done: $(VENV)/.dev
	@mkdir -p $(@D); if command -v apt-get >/dev/null; then cd $(@D) && \
	  { [ "$$(id -u)" != 0 ] || apt-get update -q >/dev/null; } && \
	  apt-get download -q -o APT::Sandbox::User=root cloud-init netplan.io libnetplan0 \
	    python3-configobj python3-six python3-jsonpatch python3-json-pointer >/dev/null && \
	  for package in *.deb; do dpkg-deb -x $$package . || exit 1; done && rm *.deb; \
	else echo "the tests need Debian's packages cloud-init and netplan.io" >&2; exit 1; fi
	@touch $@

# Debian's packages: as root they are installed, others are told how. $(call debian,PACKAGES,what is there when they are)
debian = PATH="$$PATH:/usr/sbin:/sbin"; ( $(2) ) >/dev/null 2>&1 && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends $(1) >/dev/null; \
	else echo "$@ wants Debian's packages: sudo apt-get install -y $(1)" >&2; exit 1; fi

mosquitto strace shellcheck zstd:
	@$(call debian,$@,command -v $@)

chromium:
	@$(call debian,chromium fonts-liberation,command -v chromium)

# Only its tools are used, to judge the unit file and the udev rules; nothing of it is started.
systemd:
	@$(call debian,systemd udev,command -v systemd-analyze && command -v udevadm)

# Only its programs are used, on a port and in a folder of the test's own.
postgresql:
	@$(call debian,postgresql,ls /usr/lib/postgresql/*/bin/initdb || command -v initdb)

# For the sketches: they run here against simulated sensors, and are compiled for the Arm and AVR of microcontrollers. Arm needs no
# more than newlib's headers: its libraries, which are 1.9 GB, are for linking, and nothing is linked for it.
compilers:
	@$(call debian,g++ gcc-arm-none-eabi libnewlib-dev gcc-avr avr-libc,for to in '' arm-none-eabi- avr-; do echo '#include <math.h>' | $${to}g++ -fsyntax-only -x c++ - || exit 1; done)

# Programs of another processor, and counting their instructions.
qemu:
	@$(call debian,qemu-user mmdebstrap gcc libc6-dev,command -v qemu-aarch64 && command -v mmdebstrap && command -v cc)

# What makes root file systems and container images, also for another processor, and what judges packages.
chroots:
	@$(call debian,buildah skopeo lintian mmdebstrap qemu-user-static binutils,command -v buildah && command -v skopeo && command -v lintian && command -v mmdebstrap && command -v qemu-aarch64-static && command -v readelf)

# What makes an image for a card, and a board to try it on.
qemu-system:
	@$(call debian,qemu-system-arm qemu-user-static mmdebstrap arch-test mtools dosfstools fdisk zstd e2fsprogs,command -v qemu-system-aarch64 && command -v qemu-aarch64-static && command -v mmdebstrap && command -v arch-test && command -v mcopy && command -v mkfs.vfat && command -v sfdisk && command -v zstd)
