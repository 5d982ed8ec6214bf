# One image for every process: `tinsmith serve`, `work`, `background`, `migrate`.
FROM python:3.11-slim
# A compiler for the worker's element-wise kernels; without one they run in torch, and slower.
RUN apt-get update -q && apt-get install -q -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/tinsmith
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY client client
COPY server server
COPY worker worker
COPY migrations migrations
RUN pip install --no-cache-dir -c constraints.txt '.[all]' && useradd --create-home tinsmith \
    && mkdir /data && chown tinsmith /data
USER tinsmith
ENV TINSMITH_DATA_DIR=/data
ENTRYPOINT ["tinsmith"]
CMD ["serve"]
