# The trainer's half of the program, on its own. Build it with `make image`, which passes
#   --build-arg SOURCE=$(python -m launchers.image)
# so that the driver can tell an image that is older than the code. Works with BuildKit and without.
FROM python:3.11-slim AS packages

# More arguments for pip: "--no-index" builds from wheels/ alone.
ARG PIP_ARGS=""

# wheels* may match nothing: a folder wheels/ with packages to install from is welcome, not needed.
COPY requirements.lock trainer/requirements.txt wheels* /build/
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --find-links /build \
       -r /build/requirements.txt -c /build/requirements.lock $PIP_ARGS

FROM python:3.11-slim

COPY --from=packages /opt/venv /opt/venv
COPY trainer /opt/rml/trainer

# Bytecode is compiled here because a trial's root is read-only. It is checked against the source's
# content, not its time, which a layer may change.
RUN /opt/venv/bin/python -m compileall -q --invalidation-mode checked-hash /opt/rml \
    && printf '#!/bin/sh\nexec /opt/venv/bin/python -m trainer "$@"\n' > /usr/local/bin/rmldnn \
    && chmod 755 /usr/local/bin/rmldnn \
    && chmod -R a+rX /opt/rml

# A trial runs as its caller, whom this image does not know: no home, so /tmp is one. SAFEPATH:
# nothing in the folder that a trial runs in can stand in for a module.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/rml \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp

# Last, so that another value rebuilds nothing else.
ARG SOURCE=""
LABEL org.rml-optimization.source=$SOURCE
CMD ["rmldnn", "--help"]
