# Triton with what tritome's generated models need: MONAI, torch and tritome's own runtime.
# Build from the repository's root:
#   docker build -f docker/triton.Dockerfile -t tritome-triton .
#
# 26.05 or later: older servers have known holes in client shared memory.
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.05-py3
FROM ${TRITON_IMAGE}

# The Python backend's stub runs the first python3 on PATH. An environment of our own leaves
# NVIDIA's packages as they are; --without-pip needs no python3-venv, the image's pip fills it.
ENV PATH=/opt/tritome/bin:${PATH} \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp

WORKDIR /usr/src/tritome
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY ensemble_builder ensemble_builder
COPY dicom_gateway dicom_gateway
COPY clients clients
COPY perf perf
RUN /usr/bin/python3 -m venv --without-pip /opt/tritome \
    && /usr/bin/python3 -m pip --python /opt/tritome/bin/python \
       install -c constraints.txt ".[builder]"

COPY model_repository /models

# The same user as the gateway's: both open the arena in /dev/shm, which is for its owner only.
USER 1000:1000
WORKDIR /tmp
EXPOSE 8000 8001 8002

# The first import of torch and MONAI takes a while, more so on a cold disk.
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["curl", "--fail", "--silent", "--output", "/dev/null", "http://127.0.0.1:8000/v2/health/ready"]

# Not tritonserver itself: a model whose stub died is loaded again only by whoever watches.
# All addresses: compose gives this container a network that only the gateway is in.
CMD ["tritome", "triton", "--model-repository=/models", "--host=0.0.0.0"]
