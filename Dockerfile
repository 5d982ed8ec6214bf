# One image for every process: `tinsmith serve`, `work`, `background`, `migrate`.
FROM python:3.11-slim
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
