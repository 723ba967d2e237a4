"""The API: takes jobs, hands them to the worker through Redis, and tells their results."""

import os

from flask import Flask, abort, jsonify, request
from redis import Redis
from redis.exceptions import RedisError
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job

app = Flask(__name__)
redis = Redis.from_url(os.environ["REDIS_URL"], socket_connect_timeout=2)
queue = Queue(connection=redis)


@app.get("/healthz")
def healthz():
    try:
        redis.ping()
    except RedisError as error:
        return jsonify(status="no redis", error=str(error)), 503
    return jsonify(status="ok")


@app.post("/jobs")
def enqueue():
    text = (request.get_json(silent=True) or {}).get("text")
    if not isinstance(text, str):
        abort(400, "the body must be JSON with a string `text`")
    job = queue.enqueue("jobs.count_words", text, result_ttl=3600)
    return jsonify(id=job.id), 202


@app.get("/jobs/<job_id>")
def result(job_id):
    try:
        job = Job.fetch(job_id, connection=redis)
    except NoSuchJobError:
        abort(404, "no such job")
    return jsonify(id=job.id, status=job.get_status(), result=job.result)
