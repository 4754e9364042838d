# One file for three machines; each target installs the wheel that the first stage builds:
#
#   docker build --target cpu -t animate-jax .          docker run -v models:/models -v "$PWD:/work" animate-jax doctor
#   docker build --target cuda -t animate-jax:cuda .    docker run --gpus all -v models:/models -v "$PWD:/work" animate-jax:cuda doctor
#   docker build --target tpu -t animate-jax:tpu .      docker run --privileged --net host -v models:/models -v "$PWD:/work" animate-jax:tpu doctor

FROM python:3.11-slim AS wheel
COPY . /source
RUN pip wheel --no-deps --wheel-dir /dist /source

FROM python:3.11-slim AS base
COPY --from=wheel /dist /dist
# What was fetched and compiled is kept there: give it a volume.
ENV ANIMATE_JAX_HOME=/models HF_HOME=/models/huggingface PIP_NO_CACHE_DIR=1
WORKDIR /work
ENTRYPOINT ["animate-jax"]
CMD ["--help"]

FROM base AS cpu
RUN pip install "$(echo /dist/*.whl)[hub,web]"

# CUDA's libraries come with JAX's packages; the host needs NVIDIA's driver and container toolkit.
FROM base AS cuda
RUN pip install "$(echo /dist/*.whl)[cuda,hub,web]"

FROM base AS tpu
RUN pip install "$(echo /dist/*.whl)[tpu,hub,web]"
