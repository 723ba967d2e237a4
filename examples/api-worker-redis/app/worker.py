"""The worker: takes jobs from Redis, one at a time. `worker.py check` tells whether the one in this container lives."""

import os
import socket
import sys
from datetime import datetime, timedelta

from redis import Redis
from rq import Queue, Worker

HEARTBEAT_TTL = 60  # seconds; RQ's worker renews its heartbeat well within it

connection = Redis.from_url(os.environ["REDIS_URL"])
# The name tells replicas apart: a container's host name is its own.
name = f"worker-{socket.gethostname()}"


def check():
    worker = Worker.find_by_key(Worker.redis_worker_namespace_prefix + name, connection=connection)
    if worker is None:
        sys.exit("the worker is not registered")
    if worker.last_heartbeat < datetime.utcnow() - timedelta(seconds=2 * HEARTBEAT_TTL):
        sys.exit(f"no heartbeat since {worker.last_heartbeat}")


def forget_predecessor():
    """A worker that was killed is still registered under this container's name, and RQ would refuse a second."""
    dead = Worker.find_by_key(Worker.redis_worker_namespace_prefix + name, connection=connection)
    if dead is not None:
        dead.register_death()


if __name__ == "__main__":
    if sys.argv[1:] == ["check"]:
        check()
    else:
        forget_predecessor()
        worker = Worker([Queue(connection=connection)], name=name, connection=connection, default_worker_ttl=HEARTBEAT_TTL)
        worker.work()
