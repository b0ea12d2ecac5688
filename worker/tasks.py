"""What a worker does when its bell rings."""

from celery import Celery

from app.jobs.states import Resource
from app.queue import LOOK
from app.webhooks.outbox import QUEUE
from worker.notifier import notify
from worker.runner import Runner, work


def add_tasks(celery: Celery, runner: Runner) -> None:
    @celery.task(name=LOOK)
    def look(queue: str) -> None:
        if queue in list(Resource):
            work(runner, Resource(queue))
        elif queue == QUEUE:
            notify(runner)
