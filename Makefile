# Everything a person does with Ferrule from a checkout. Each target installs what it lacks and says so.
#
#   make demo     the main job with real traffic, on this machine, now
#   make test     every test that can run here
#   make lab      real SR-IOV, IOMMU and VFIO in a virtual machine; ONLY=word runs some of it
#   make lab-shell  a shell inside
#   make node     a real kubelet, with API server and containerd, in namespaces; ONLY=word runs some of it. The first time it builds
#                 them from Go modules: docs/node.md says what that costs
#   make node-shell  a shell there, with kubectl
#   make kubelet  of that a real kubelet alone, with static pods: what .ci/run has of it
#   make nsm      connections of Network Service Mesh through the forwarder, in namespaces; ONLY=word runs some of it, and NSM_BIN=DIR
#                 the same with the programs in Go that lie there: docs/nsm-forwarder.md
#   make asan     the C code that is called for DPDK, and its callers, under AddressSanitizer
#   make bench    beside testpmd and OVS-DPDK: rates and ratios, target/bench/report.html; then what quiet wires cost
#   make images   OCI images of the daemons and of the network functions, in target/images, without a container engine
#   make lint     format, clippy, docs, links, licences

SHELL := /bin/bash
CARGO := cargo
RELEASE := target/release
# What is built with some of the crates has other features, down to the dependencies: a second build of nearly everything.
BUILD := $(CARGO) build --workspace --lib --bins --examples --tests --locked
# What the targets need besides cargo: Debian packages.
DEMO_PACKAGES := gcc libc6-dev iproute2 iputils-ping
TEST_PACKAGES := $(DEMO_PACKAGES) dpdk-dev iptables libclang-dev nftables pkgconf procps python3
# Of Open vSwitch only the programs are used: the bench starts them in a folder of its own.
BENCH_PACKAGES := $(TEST_PACKAGES) openvswitch-switch-dpdk
IMAGES_PACKAGES := binutils dpdk-dev gcc libc6-dev libclang-dev pkgconf
KUBELET_PACKAGES := busybox-static gcc iproute2 libc6-dev libseccomp-dev pkgconf python3 util-linux
NODE_PACKAGES := $(KUBELET_PACKAGES) binutils openssl prometheus
VM_PACKAGES := binutils busybox-static e2fsprogs iproute2 kmod util-linux xz-utils

# What the demo does not measure is not optimized: 62 of the build's CPU seconds become 11.
DEMO_QUICK := $(foreach crate,device-plugin ferrule-kubelet,--config profile.release.package.$(crate).opt-level=0)

# What clippy has checked is not checked once more for the pages: cargo sees the same compiler with the same arguments. Where it does not,
# it only takes longer.
AS_CLIPPY := RUSTC_WORKSPACE_WRAPPER=$$(rustc --print sysroot)/bin/clippy-driver \
	CLIPPY_ARGS=-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__

.PHONY: demo test asan nsm lab lab-shell vm-pieces node node-shell node-pieces kubelet kubelet-run kubelet-pieces images lint bench help

help:
	@sed -n 's/^#   //p' Makefile

demo: need-demo
	@echo "==> building (release)"
	@$(CARGO) build --release --locked --no-default-features $(DEMO_QUICK) -p dpdk-forwarder -p device-plugin -p ferrule-functions -p ferrule
	@sudo=$$([ $$(id -u) = 0 ] || echo sudo); for what in "" pod secure-intranet nat; do \
		echo "==> ferrule demo$${what:+ $$what}"; $$sudo $(RELEASE)/ferrule demo $$what || exit; \
	done

test: need-test vm-pieces
	@echo "==> building"
	@$(BUILD)
	@.ci/count $(CARGO) test --workspace --locked

asan: need-test
	@ffi/dpdk/asan

nsm: need-test
	@echo "==> building"
	@$(BUILD)
	@target/debug/nsm $(ONLY)

lab: need-test vm-pieces
	@echo "==> building"
	@$(BUILD)
	@target/debug/lab run $(ONLY)

lab-shell: need-test vm-pieces
	@echo "==> building"
	@$(BUILD)
	@target/debug/lab shell

# Without them what needs them is skipped, aloud.
vm-pieces: need-vm
	@hw-tests/vm-pieces target/lab || echo "==> no virtual machines here"

node: need-node node-pieces
	@echo "==> building"
	@$(BUILD)
	@target/debug/images --binaries target/debug --out target/node/images
	@target/debug/node run $(ONLY)

node-shell: need-node node-pieces
	@echo "==> building"
	@$(BUILD)
	@target/debug/node shell

# Without them what needs them is skipped, aloud.
node-pieces: need-node
	@hw-tests/node/build target/node || echo "==> no Kubernetes node here"

kubelet: kubelet-pieces kubelet-run

kubelet-run: need-kubelet
	@echo "==> building"
	@$(BUILD)
	@target/debug/node run kubelet_1_37_registers kubelet_1_37_restarts

kubelet-pieces: need-kubelet
	@hw-tests/node/build target/node containerd runc cni kubelet-1.37 || echo "==> no kubelet here"

images: need-images
	@echo "==> building (release)"
	@$(CARGO) build --release --locked -p dpdk-forwarder -p sriov-manager -p device-plugin -p ferrule-functions -p ferrule
	@# It runs on the node itself, whose C library may be an older one: so it has its own.
	@$(CARGO) rustc --release --locked -p ferrule-cni --bin ferrule-cni -- -C target-feature=+crt-static
	@echo "==> images"
	@$(CARGO) run --quiet --release --locked -p ferrule-deploy --bin images

lint:
	@echo "==> format"
	@$(CARGO) fmt --all --check
	@echo "==> clippy"
	@$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@echo "==> docs"
	@RUSTDOCFLAGS="-D warnings" $(AS_CLIPPY) $(CARGO) doc --workspace --no-deps --locked --document-private-items
	@.ci/names
	@.ci/links
	@.ci/circles
	@.ci/licences

bench: need-bench
	@echo "==> building (release)"
	@$(CARGO) build --release --locked -p dpdk-forwarder -p ferrule
	@$(RELEASE)/ferrule bench --suite --touch untouched --against testpmd,ovs
	@$(CARGO) bench --locked -p ferrule-hw-tests --bench idle

# Installs the Debian packages of a list that are not there. Services that come with them are not started.
need-%: PACKAGES = $($(shell echo $* | tr a-z A-Z)_PACKAGES)
need-%:
	@missing=$$(for package in $(PACKAGES); do \
		dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || echo $$package; done); \
	if [ -n "$$missing" ]; then \
		echo "==> installing Debian packages:" $$missing; \
		sudo=$$([ $$(id -u) = 0 ] || echo sudo); \
		$$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive sh -c ' \
			policy=/usr/sbin/policy-rc.d; \
			[ -e $$policy ] || { trap "rm -f $$policy" EXIT; printf "%s\n" "#!/bin/sh" "exit 101" >$$policy; chmod 755 $$policy; }; \
			apt-get install -y -qq --no-install-recommends "$$@" >/dev/null' sh $$missing; \
	fi
