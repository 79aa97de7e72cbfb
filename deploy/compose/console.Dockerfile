# The image of the `headrace` command, which seeds etcd with a policy. Build it from the repository's root:
#   docker build --file deploy/compose/console.Dockerfile .
# The first stage is the same in all images: one layer holds the locked environment of them all.
FROM python:3.11-slim AS environment
COPY deploy/requirements.lock .
RUN python -m venv /opt/headrace \
 && /opt/headrace/bin/pip install --no-cache-dir --no-deps --require-hashes --requirement requirements.lock

FROM python:3.11-slim
RUN useradd --system --uid 10001 headrace \
 && install --directory --owner headrace /var/lib/headrace /var/cache/headrace
COPY --from=environment /opt/headrace /opt/headrace
WORKDIR /srv/headrace
COPY protos/etcdserverpb protos/etcdserverpb
COPY protos/headrace protos/headrace
COPY libs libs
COPY services services
COPY deploy/policy deploy/policy
ENV PATH=/opt/headrace/bin:$PATH \
    PYTHONPATH=/srv/headrace:/srv/headrace/protos
USER headrace
# It runs a command and ends, so there is no health to ask for.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "services.console.main"]
CMD ["--help"]
