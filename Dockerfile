# The program in a container: `docker build -t replicate .` for a CPU, and
#
#     docker build -t replicate:gpu --target gpu --build-arg CUDA_COMPUTE_CAP=90 .
#
# for a GPU of that compute capability (80 A100, 86 and 89 RTX, 90 H100 and H200), which needs
# no GPU to be built. `docker run --rm replicate selftest` says whether it computes what it should;
# `-v "$PWD/store:/replicate/store" -v "$PWD/report:/replicate/report"` keeps results and report, and
# `--gpus all` gives it the GPU.
ARG CUDA=12.6.3
ARG UBUNTU=24.04

FROM rust:1.89-bookworm AS cpu-build
WORKDIR /replicate
COPY . .
RUN cargo build --release --locked

FROM nvidia/cuda:${CUDA}-cudnn-devel-ubuntu${UBUNTU} AS gpu-build
ARG CUDA_COMPUTE_CAP=90
ENV CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP} PATH=/root/.cargo/bin:${PATH}
RUN apt-get update && apt-get install -y --no-install-recommends curl ca-certificates git \
    && rm -rf /var/lib/apt/lists/* \
    && curl -sSfo rustup.sh https://sh.rustup.rs && sh rustup.sh -y --profile minimal && rm rustup.sh
WORKDIR /replicate
COPY . .
RUN cargo build --release --locked --features cudnn

FROM nvidia/cuda:${CUDA}-cudnn-runtime-ubuntu${UBUNTU} AS gpu
WORKDIR /replicate
COPY --from=gpu-build /replicate/target/release/replicate /usr/local/bin/
COPY LICENSE CITATION.cff ./
COPY paper paper
COPY golden golden
ENTRYPOINT ["replicate"]

FROM debian:bookworm-slim
WORKDIR /replicate
COPY --from=cpu-build /replicate/target/release/replicate /usr/local/bin/
COPY LICENSE CITATION.cff ./
COPY paper paper
COPY golden golden
ENTRYPOINT ["replicate"]
