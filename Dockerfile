# The package, its launch scripts and what they need, for a machine with Docker or a cluster with Kubernetes:
#
#     docker build -t alexnet-dist:0.2.0 .
#     docker run --rm --gpus all --shm-size 1g --stop-timeout 300 -v "$PWD/runs:/runs" -v alexnet-cache:/cache \
#         alexnet-dist:0.2.0 train --out-dir /runs/first
#     docker run --rm -v "$PWD/runs:/runs" -v "$PWD/photos:/photos:ro" alexnet-dist:0.2.0 predict /runs/first /photos
#
# What comes behind the image's name is a command of alexnet-dist and its options. The user is 1000, so runs/ has to be
# writable for that number. All GPUs of a machine: `--entrypoint launch/node.sh`, several machines: launch/multinode.sh,
# launch/kubernetes.yaml. CUDA comes with torch's wheels, the driver from the host (NVIDIA Container Toolkit).
# --runtime.compile needs a C compiler, which is not in here.
#
# Checked by hadolint and by tests/unit/test_containers.py; the image itself was not built here.
FROM python:3.11-slim

# The user first: what follows it changes more often.
RUN useradd --uid 1000 --create-home alexnet \
    && mkdir -p /runs /cache /alexnet_dist/runs \
    && chown alexnet:alexnet /runs /cache /alexnet_dist/runs
WORKDIR /alexnet_dist

# Dependencies, some gigabytes: this layer is made again only when their list or the version changes, not with the code.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY alexnet_dist/__init__.py alexnet_dist/
RUN pip install --no-cache-dir --constraint constraints.txt '.[demo,tensorboard]' && rm -rf build ./*.egg-info

COPY train.py accelerate_config.yaml ./
COPY launch launch/
COPY alexnet_dist alexnet_dist/
RUN pip install --no-cache-dir --no-deps --force-reinstall . && rm -rf build ./*.egg-info

# Data sets, downloads and decoded images: mount a volume to keep them.
ENV XDG_CACHE_HOME=/cache PYTHONUNBUFFERED=1 NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
ENTRYPOINT ["alexnet-dist"]
