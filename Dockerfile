# One file for three machines; each target installs the wheel that the first stage builds:
#
#   docker build --target cpu -t animate-jax .
#   docker build --target cuda -t animate-jax:cuda .
#   docker build --target tpu -t animate-jax:tpu .
#
#   docker run --user "$(id -u):$(id -g)" -v models:/models -v "$PWD:/work" animate-jax doctor
#   docker run --gpus all --user "$(id -u):$(id -g)" -v models:/models -v "$PWD:/work" animate-jax:cuda doctor
#   docker run --privileged --net host -v models:/models -v "$PWD:/work" animate-jax:tpu doctor

FROM python:3.11-slim-bookworm AS wheel
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist /source

FROM python:3.11-slim-bookworm AS base
COPY --from=wheel /dist /dist
# What was fetched and compiled is kept in /models: give it a volume. Any user may write there, also one of --user.
ENV ANIMATE_JAX_HOME=/models HF_HOME=/models/huggingface PIP_NO_CACHE_DIR=1
RUN useradd --create-home animate && mkdir -p /models /work && chmod 1777 /models /work
WORKDIR /work
ENTRYPOINT ["animate-jax"]
CMD ["--help"]

FROM base AS cpu
RUN pip install "$(echo /dist/*.whl)[hub,web]"
USER animate

# CUDA's libraries come with JAX's packages; the host needs NVIDIA's driver and container toolkit.
FROM base AS cuda
RUN pip install "$(echo /dist/*.whl)[cuda,hub,web]"
USER animate

# As root, to whom a TPU's device files belong.
FROM base AS tpu
RUN pip install "$(echo /dist/*.whl)[tpu,hub,web]"
