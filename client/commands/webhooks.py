"""`tunesmith webhooks`: URLs that are told of jobs, and what was sent to them."""

from typing import Annotated, Any

import typer
from rich.console import Console

from client import display
from client.api import DEFAULT_URL
from client.options import Json, Limit, Url, connect, print_json

app = typer.Typer(
    no_args_is_help=False, help="URLs that are told of jobs: list, create, test or delete them; what was sent; send it again."
)
EndpointId = Annotated[str, typer.Argument(metavar="ID", help="The endpoint's id.")]


@app.callback(invoke_without_command=True)
def webhooks(context: typer.Context, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_endpoints(url, as_json)


@app.command("list")
def list_endpoints(url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """List the endpoints, the newest first."""
    with connect(url) as client:
        data = list(client.webhook_endpoints())
    rows = [[one["id"], "enabled" if one["enabled"] else "disabled", one["name"], one["url"]] for one in data]
    print_json(data) if as_json else display.table(Console(), ["ENDPOINT", "STATE", "NAME", "URL"], rows, empty="None.")


@app.command("create")
def create_endpoint(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The URL to tell.")],
    name: Annotated[str | None, typer.Option(help="What to call it; by default the URL's host.")] = None,
    events: Annotated[
        list[str] | None, typer.Option("--event", help="An event type; may be repeated. By default how jobs ended.")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Tell a URL of all jobs. Prints the endpoint's id and its signing secret, which is shown this once."""
    wanted = {"url": target, "name": name, "event_types": events}
    with connect(url) as client:
        endpoint = client.create_webhook_endpoint({field: value for field, value in wanted.items() if value})
    print_json(endpoint) if as_json else print(endpoint["id"], endpoint["signing_secret"], sep="\n")


@app.command("test")
def try_endpoint(
    endpoint_id: EndpointId,
    event: Annotated[str | None, typer.Option(help="The event type of the sample.")] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Send a sample event now; exit 1 unless the receiver takes it."""
    with connect(url) as client:
        result = client.test_webhook_endpoint(endpoint_id, event)
    print_json(result) if as_json else print(f"The receiver answered {result['status_code']}.")
    if not 200 <= result["status_code"] < 300:
        raise typer.Exit(1)


@app.command("delete")
def delete_endpoint(endpoint_id: EndpointId, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Tell a URL of nothing any more. What waits for it is dropped."""
    with connect(url) as client:
        client.delete_webhook_endpoint(endpoint_id)
    print_json({"id": endpoint_id, "deleted": True}) if as_json else print(f"{endpoint_id} is deleted.")


@app.command("deliveries")
def list_deliveries(
    job: Annotated[str | None, typer.Option(help="Only those of this job.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Only those to this endpoint.")] = None,
    limit: Limit = 20,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """List what was sent and what waits, the newest first."""
    with connect(url) as client:
        data = client.webhook_deliveries(limit=limit, job=job, endpoint=endpoint)
    rows = [delivery_row(delivery) for delivery in data]
    columns = ["DELIVERY", "STATUS", "EVENT", "JOB", "TRIES", "LAST ANSWER", "NEXT TRY"]
    print_json(data) if as_json else display.table(Console(), columns, rows, empty="None.")


def delivery_row(delivery: dict[str, Any]) -> list[Any]:
    attempts = delivery["attempts"]
    last = (attempts[-1]["status_code"] or attempts[-1]["error"]) if attempts else None
    next_try = display.moment(delivery["next_attempt_at"])
    return [*(delivery[name] for name in ("id", "status", "event_type", "job_id")), len(attempts), last, next_try]


@app.command()
def redeliver(
    delivery_id: Annotated[str, typer.Argument(metavar="ID", help="The delivery's id.")],
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Send a delivery again, at once."""
    with connect(url) as client:
        delivery = client.redeliver_webhook(delivery_id)
    print_json(delivery) if as_json else print(f"{delivery_id} is sent again.")
