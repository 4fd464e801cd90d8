# The example shop on this project, for docker-compose.yml; the last stage adds what its tests need.
FROM python:3.13-slim AS build
WORKDIR /src
RUN python3 -m venv /venv
COPY pyproject.toml README.md LICENSE ./
COPY qx_cache ./qx_cache
COPY qx_cache_celery ./qx_cache_celery
RUN /venv/bin/pip install --no-cache-dir ".[sqlalchemy,hiredis]"
COPY examples/shop ./examples/shop
RUN /venv/bin/pip install --no-cache-dir ./examples/shop

FROM python:3.13-slim AS shop
RUN useradd --create-home --uid 1000 shop
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER shop
WORKDIR /home/shop
CMD ["celery", "-A", "shop.tasks", "worker", "--loglevel=INFO", "--concurrency=2"]

FROM build AS tools
RUN /venv/bin/pip install --no-cache-dir "docker>=7" "flower>=2" "httpx>=0.27" "pytest>=9"

FROM shop AS tests
COPY --from=tools /venv /venv
COPY tests/stack ./stack
CMD ["pytest", "-q", "-p", "no:cacheprovider", "stack"]
