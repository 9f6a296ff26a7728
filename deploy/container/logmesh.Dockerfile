# Every service in one image; what follows the image's name chooses which, and nothing at all a standalone. From the project's root:
#
#   docker build -f deploy/container/logmesh.Dockerfile -t logmesh .
#   docker run --read-only --cap-drop ALL --security-opt no-new-privileges -p 127.0.0.1:7400:7400 \
#     -v logmesh:/var/lib/logmesh logmesh
#
# deploy/compose runs all of a mesh from it. A user without rights is enough, and nothing is written but a standalone's data.

FROM rust:1.95-slim-trixie AS build
# Kafka's client is C and takes TLS from OpenSSL; etcd's makes its messages with protoc.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install -y --no-install-recommends build-essential libssl-dev pkg-config protobuf-compiler zlib1g-dev \
  && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
  cargo build --release --locked -p logmesh && install -D target/release/logmesh /out/logmesh

FROM debian:trixie-slim
# What `ldd` names beyond libc, and the certificates of public authorities.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install -y --no-install-recommends ca-certificates libssl3t64 zlib1g \
  && rm -rf /var/lib/apt/lists/* \
  && install -d -o 65532 -g 65532 /var/lib/logmesh
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="logmesh" \
  org.opencontainers.image.description="Logs of thousands of machines, searchable in real time, none missing: all services" \
  org.opencontainers.image.version="$VERSION" \
  org.opencontainers.image.revision="$REVISION" \
  org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/logmesh /usr/bin/logmesh
USER 65532:65532
VOLUME /var/lib/logmesh
# gRPC of a standalone or a console, of config, gateway and transfer; metrics and health, 100 higher.
EXPOSE 7400 7401 7402 7403 7500 7501 7502 7503
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/logmesh"]
CMD ["standalone", "--data-dir", "/var/lib/logmesh", "--listen", "0.0.0.0:7400", "--insecure"]
# Of the standalone. Other services bring their own: the same options, with --ready.
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 \
  CMD ["/usr/bin/logmesh", "standalone", "--data-dir", "/var/lib/logmesh", "--listen", "0.0.0.0:7400", "--insecure", "--ready"]
