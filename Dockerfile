# Targets: service (gRPC), gateway (REST, small, no torch), all-in-one (both; takes TGI's command line).
#   docker build --target all-in-one -t tokenwire .
#   docker run --gpus all -p 8080:80 -p 50051:50051 -v tokenwire-data:/data tokenwire --model-id ORG/NAME --port 80
# It runs as uid 10001, which a named volume suits. For a directory of yours: -v "$PWD/data:/data" --user "$(id -u):$(id -g)"
# A CPU image: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
RUN groupadd --gid 10001 tokenwire \
    && useradd --uid 10001 --gid 10001 --create-home tokenwire \
    && mkdir -p /data \
    && chown 10001:10001 /data

FROM base AS gateway-build
COPY constraints.txt /src/
COPY clients/python /src/clients/python
COPY gateway_openai /src/gateway_openai
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir -c /src/constraints.txt /src/clients/python /src/gateway_openai

FROM gateway-build AS service-build
ARG TORCH_INDEX=""
RUN grep '^torch==' /src/constraints.txt >/src/torch.txt \
    && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} -r /src/torch.txt
COPY service /src/service
RUN pip install --no-cache-dir -c /src/constraints.txt /src/service

FROM base AS gateway
COPY --from=gateway-build /opt/venv /opt/venv
USER 10001:10001
EXPOSE 8080
ENTRYPOINT ["tokenwire-gateway"]

FROM base AS service-base
# The compiler builds the CPU kernels for the processor they run on, once; the certificates are for the Hub.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ \
    && rm -rf /var/lib/apt/lists/*
COPY --from=service-build /opt/venv /opt/venv
# HOME: compiled kernels are kept there too.
ENV HUGGINGFACE_HUB_CACHE=/data HOME=/data
USER 10001:10001
VOLUME /data

FROM service-base AS service
EXPOSE 50051
ENTRYPOINT ["tokenwire", "serve"]

FROM service-base AS all-in-one
ENV PORT=80
EXPOSE 80 50051
ENTRYPOINT ["tokenwire", "launch"]
