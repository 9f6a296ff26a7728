# The agent as a container. From the project's root:
#
#   docker build -f deploy/container/agent.Dockerfile -t logmesh-agent .
#   docker run --read-only --cap-drop ALL --cap-add DAC_READ_SEARCH --security-opt no-new-privileges \
#     --network host --uts host -v /var/log:/var/log:ro -v /etc/machine-id:/etc/machine-id:ro -v logmesh-agent:/var/lib/logmesh-agent \
#     logmesh-agent --server config-1:7401 --insecure
#
# Its root may read every file of the host's logs, as it has to, and change none of them: of root's rights only that one is
# left. Without --cap-add it collects what everybody may read. Its id comes from the host's machine-id; `--uts host` gives
# events the host's name. All that it keeps lies in the volume; without one it finds the same streams again and sends them
# again, and the mesh knows the repeated lines by their ids.

FROM rust:1.95-slim-trixie AS build
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
  cargo build --release --locked -p logmesh-agent && install -D target/release/logmesh-agent /out/logmesh-agent

FROM debian:trixie-slim
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="logmesh-agent" \
  org.opencontainers.image.description="Collects the log files of a host for logmesh, and loses none of their lines" \
  org.opencontainers.image.version="$VERSION" \
  org.opencontainers.image.revision="$REVISION" \
  org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/logmesh-agent /usr/bin/logmesh-agent
VOLUME /var/lib/logmesh-agent
# Metrics and health, on loopback: `docker run --network host` leaves them to the host.
EXPOSE 7499
STOPSIGNAL SIGTERM
# hadolint ignore=DL3002
USER 0:0
ENTRYPOINT ["/usr/bin/logmesh-agent"]
# It asks the agent that runs with the same settings: where LOGMESH_LISTEN_ADMIN moves its port, it's found.
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 CMD ["/usr/bin/logmesh-agent", "--insecure", "--ready"]
