# The image of services/router. Build it from the repository's root:
#   docker build --file deploy/compose/router.Dockerfile .
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
COPY deploy/compose/healthy.py ./
COPY protos/etcdserverpb protos/etcdserverpb
COPY protos/headrace protos/headrace
COPY libs libs
COPY services/__init__.py services/
COPY services/router services/router
ENV PATH=/opt/headrace/bin:$PATH \
    PYTHONPATH=/srv/headrace:/srv/headrace/protos \
    HEADRACE_STATE_DIR=/var/lib/headrace \
    HEADRACE_CACHE_DIR=/var/cache/headrace
USER headrace
EXPOSE 8411 8511
HEALTHCHECK --interval=5s --timeout=3s --start-period=120s CMD ["python", "healthy.py"]
CMD ["python", "-m", "services.router.main"]
