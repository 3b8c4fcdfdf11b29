# Two images from one file:
#   docker build --target boom-server -t conntrack-canary/boom-server:0.1.0 .
#   docker build --target load-client -t conntrack-canary/load-client:0.1.0 .
# For the other architecture (linux/amd64, linux/arm64), on any machine: --platform linux/arm64
# BuildKit is needed (Docker 23 and later use it; before that, DOCKER_BUILDKIT=1).
#
# The programs are linked statically with glibc, which since 2.34 looks names up
# (hosts file and DNS) without loading a library, so that the image holds one file.

ARG RUST_VERSION=1.95
ARG BUILDER_IMAGE=docker.io/library/rust:${RUST_VERSION}-slim-bookworm
# For a shell in the image: --build-arg RUNTIME_IMAGE=docker.io/library/busybox:1.36
ARG RUNTIME_IMAGE=scratch

# --- the builder runs on the building machine's own platform and compiles for the
# image's: neither emulation nor a machine of that kind is needed
FROM --platform=${BUILDPLATFORM} ${BUILDER_IMAGE} AS builder-amd64
ENV CARGO_BUILD_TARGET=x86_64-unknown-linux-gnu \
    LINKER=x86_64-linux-gnu-gcc \
    LINKER_PACKAGES="gcc-x86-64-linux-gnu libc6-dev-amd64-cross"

FROM --platform=${BUILDPLATFORM} ${BUILDER_IMAGE} AS builder-arm64
ENV CARGO_BUILD_TARGET=aarch64-unknown-linux-gnu \
    LINKER=aarch64-linux-gnu-gcc \
    LINKER_PACKAGES="gcc-aarch64-linux-gnu libc6-dev-arm64-cross"

# --- the programs. What was compiled before stays in a cache of the builder's.
FROM builder-${TARGETARCH} AS build
ARG TARGETARCH
WORKDIR /build
# A builder of the image's own platform has both already.
RUN set -eu; \
    command -v "$LINKER" >/dev/null || { \
        apt-get update -qq; \
        apt-get install -y -qq --no-install-recommends $LINKER_PACKAGES; \
        rm -rf /var/lib/apt/lists/*; \
    }; \
    [ -d "$(rustc --print target-libdir --target "$CARGO_BUILD_TARGET")" ] || rustup target add "$CARGO_BUILD_TARGET"
# A target that is named keeps RUSTFLAGS away from build scripts and macros, which
# cannot be static. The machine's own linker, for those, goes by the same name.
ENV CARGO_PROFILE_RELEASE_STRIP=symbols \
    CARGO_TERM_COLOR=never \
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    RUSTFLAGS="-C target-feature=+crt-static"
COPY . .
RUN --mount=type=cache,id=conntrack-canary-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=conntrack-canary-target-${TARGETARCH},target=/build/target,sharing=locked \
    set -eu; \
    cargo build --release --locked -p boom-server -p load-client; \
    mkdir -p /out; \
    cp "target/$CARGO_BUILD_TARGET/release/boom-server" "target/$CARGO_BUILD_TARGET/release/load-client" /out/

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
