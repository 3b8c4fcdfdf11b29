# Two images from one file:
#   docker build --target boom-server -t conntrack-canary/boom-server:0.1.0 .
#   docker build --target load-client -t conntrack-canary/load-client:0.1.0 .
# BuildKit is needed (Docker 23 and later use it; before that, DOCKER_BUILDKIT=1).
#
# The programs are linked statically with glibc, which since 2.34 looks names up
# (hosts file and DNS) without loading a library, so that the image holds one file.

ARG RUST_VERSION=1.95
ARG BUILDER_IMAGE=docker.io/library/rust:${RUST_VERSION}-slim-bookworm
# For a shell in the image: --build-arg RUNTIME_IMAGE=docker.io/library/busybox:1.36
ARG RUNTIME_IMAGE=scratch

# --- every dependency, in a layer that lasts until a manifest or the lock file changes
FROM ${BUILDER_IMAGE} AS dependencies
WORKDIR /build
ENV CARGO_PROFILE_RELEASE_STRIP=symbols \
    CARGO_TERM_COLOR=never \
    RUSTFLAGS="-C target-feature=+crt-static"
COPY Cargo.toml Cargo.lock ./
COPY common/Cargo.toml common/
COPY boom-server/Cargo.toml boom-server/
COPY load-client/Cargo.toml load-client/
COPY lab/Cargo.toml lab/
# An explicit --target keeps RUSTFLAGS away from build scripts and macros, which
# cannot be static. The stubs and what was built of them do not stay: cargo would
# take a newer stub for the source.
RUN --mount=type=cache,id=conntrack-canary-registry,target=/usr/local/cargo/registry,sharing=locked \
    set -eu; \
    triple=$(rustc -vV | sed -n 's/^host: //p'); \
    for crate in common boom-server load-client lab; do \
        mkdir -p "$crate/src"; \
        : >"$crate/src/lib.rs"; \
        [ "$crate" = common ] || echo 'fn main() {}' >"$crate/src/main.rs"; \
    done; \
    cargo build --release --locked --target "$triple" -p boom-server -p load-client; \
    cargo clean --release --target "$triple" -p canary-common -p boom-server -p load-client; \
    rm -rf common/src boom-server/src load-client/src

# --- the programs
FROM dependencies AS build
COPY common common
COPY boom-server boom-server
COPY load-client load-client
RUN --mount=type=cache,id=conntrack-canary-registry,target=/usr/local/cargo/registry,sharing=locked \
    set -eu; \
    triple=$(rustc -vV | sed -n 's/^host: //p'); \
    cargo build --release --locked --target "$triple" -p boom-server -p load-client; \
    mkdir -p /out; \
    cp "target/$triple/release/boom-server" "target/$triple/release/load-client" /out/

# --- what both images share
FROM ${RUNTIME_IMAGE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"

# --- image 1. UID 0, because a capability that is added to another user has no
# effect without file capabilities, and no_new_privs voids those. Run it with
# --cap-drop ALL --cap-add NET_RAW.
FROM runtime AS boom-server
LABEL org.opencontainers.image.title="boom-server" \
      org.opencontainers.image.description="Forges out-of-window TCP segments and judges what conntrack does with them"
COPY --from=build /out/boom-server /boom-server
USER 0:0
EXPOSE 9000/tcp 9100/tcp
ENTRYPOINT ["/boom-server"]

# --- image 2. No capability, no user of any file.
FROM runtime AS load-client
LABEL org.opencontainers.image.title="load-client" \
      org.opencontainers.image.description="Churns, holds and probes TCP connections and accounts for every one"
COPY --from=build /out/load-client /load-client
USER 65532:65532
EXPOSE 8080/tcp 9100/tcp
ENTRYPOINT ["/load-client"]
