# A server on the CPU: docker build -t masklab . && docker run -e MASKLAB_TOKEN=... -p 8000:8000 masklab
FROM python:3.12-slim

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu ".[serve,results,slides]" \
    && useradd --uid 1000 --create-home --shell /usr/sbin/nologin masklab

USER 1000
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["masklab", "serve", "--host", "0.0.0.0"]
CMD ["nuclei"]
