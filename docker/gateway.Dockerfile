# The DICOM gateway: tritome without torch, MONAI or a tritonserver, with PostgreSQL's driver.
# Build from the repository's root:
#   docker build -f docker/gateway.Dockerfile -t tritome-gateway .
ARG PYTHON_IMAGE=python:3.12-slim
FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /usr/src/tritome
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY ensemble_builder ensemble_builder
COPY dicom_gateway dicom_gateway
COPY clients clients
COPY perf perf
RUN python -m venv /opt/tritome \
    && /opt/tritome/bin/python -m pip install -c constraints.txt ".[postgres]"

FROM ${PYTHON_IMAGE}
ENV PATH=/opt/tritome/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
COPY --from=build /opt/tritome /opt/tritome
COPY docker/gateway.yaml /etc/tritome/gateway.yaml
# A new volume takes its owner from here.
RUN install -d -o 1000 -g 1000 -m 0750 /var/lib/tritome

# The same user as Triton's: both open the arena in /dev/shm, which is for its owner only.
USER 1000:1000
# Where every command looks for gateway.yaml: docker compose exec gateway tritome jobs list
WORKDIR /etc/tritome
VOLUME /var/lib/tritome
EXPOSE 11112

# It asks whether the door is open and no more, wherever gateway.yaml has it: a C-ECHO would need
# an AE title that is known there.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import json, socket; socket.create_connection(('127.0.0.1', json.load(open('/tmp/ready.json'))['port']), 3).close()"]

# The gateway ends cleanly on SIGTERM as process 1 too; it starts no process it doesn't reap.
ENTRYPOINT ["python", "-m", "dicom_gateway", "--ready-file", "/tmp/ready.json"]
CMD ["--config", "/etc/tritome/gateway.yaml"]
