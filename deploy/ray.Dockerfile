# docker build -f deploy/ray.Dockerfile -t REGISTRY/seqrec-ray .
# The same Ray and Python on every machine of a cluster. rayVersion in rayjob.yaml must be that of this image.
FROM rayproject/ray:2.60.0-py311
USER root
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
USER ray
COPY --chown=ray . /tmp/source
# The CPU build of torch: the one of PyPI comes with gigabytes of CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN cd /tmp/source && pip install --no-cache-dir -c constraints.txt torch --index-url ${TORCH_INDEX} \
    && pip install --no-cache-dir -c constraints.txt '.[ray]' && rm -rf /tmp/source
ENV RAY_USAGE_STATS_ENABLED=0
