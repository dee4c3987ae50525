# A server on the CPU: docker build -t masklab . && docker run -e MASKLAB_TOKEN=... -p 8000:8000 masklab
# --build-arg PIP_EXTRA_INDEX_URL=... with PyTorch's index of CPU wheels keeps 4 GB of CUDA's libraries out of it.
FROM python:3.12-slim

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
ARG PIP_EXTRA_INDEX_URL=""
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[serve,results,slides]" \
    && useradd --uid 1000 --create-home --shell /usr/sbin/nologin masklab

USER 1000
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["masklab", "serve", "--host", "0.0.0.0"]
CMD ["nuclei"]
