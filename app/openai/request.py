"""The body that creates a fine-tuning job in OpenAI's form, and the JobSpec that it stands for."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, create_model

from app.errors import Detail, InvalidSpec
from app.jobs.spec import Dataset, JobSpec, LabelKey, LabelValue, Name, SpecModel, Training, merged

DEFAULTS = Training()
METHODS = {"supervised": "sft", "dpo": "dpo"}
PARAMS = {
    "base_model": "model",
    "dataset.file": "training_file",
    "dataset.validation_file": "validation_file",
    "name": "suffix",
    "labels": "metadata",
    "training.seed": "seed",
    "preference.beta": "method.dpo.hyperparameters.beta",
}
"""What fields of a JobSpec are called in OpenAI's form."""

SAME_AS = {
    "n_epochs": ("training.epochs", "training.max_steps"),
    "batch_size": ("training.batch_size", "training.gradient_accumulation", "training.packing"),
    "learning_rate_multiplier": ("training.learning_rate",),
    "beta": ("preference.beta",),
    "seed": ("training.seed",),
    "suffix": ("name",),
    "metadata": ("labels",),
    "training_file": ("dataset.file",),
    "validation_file": ("dataset.validation_file",),
}
"""Which fields of a JobSpec say what a field or a hyperparameter of OpenAI's says."""

Epochs = Annotated[int, Field(ge=1, le=50)]
BatchSize = Annotated[int, Field(ge=1, le=256)]
Multiplier = Annotated[float, Field(gt=0, le=1 / DEFAULTS.learning_rate)]
Beta = Annotated[float, Field(gt=0, le=2)]


class Hyperparameters(SpecModel):
    """`batch_size` counts the examples of an optimizer step; the multiplier is of our default learning rate."""

    n_epochs: Epochs | Literal["auto"] | None = None
    batch_size: BatchSize | Literal["auto"] | None = None
    learning_rate_multiplier: Multiplier | Literal["auto"] | None = None


class DpoHyperparameters(Hyperparameters):
    beta: Beta | Literal["auto"] | None = None


class Supervised(SpecModel):
    hyperparameters: Hyperparameters | None = None


class Dpo(SpecModel):
    hyperparameters: DpoHyperparameters | None = None


class Method(SpecModel):
    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: dict[str, Any] | None = None


class DatasetOptions(Dataset):
    """A JobSpec's `dataset`; the file is named by `training_file`."""

    def _has_one_source(self) -> "DatasetOptions":  # type: ignore[override]
        return self  # the whole spec is asked


OwnFields = create_model(
    "OwnFields",
    __base__=SpecModel,
    **{
        name: (field.annotation, field)
        for name, field in JobSpec.model_fields.items()
        if name not in ("base_model", "dataset", "method")
    },  # type: ignore[call-overload]
)


class FineTuningRequest(OwnFields):  # type: ignore[valid-type, misc]
    """OpenAI's fields, and beside them every other field of a JobSpec."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    training_file: str | None = None
    """May be left out beside `dataset.hub`."""
    validation_file: str | None = None
    suffix: Annotated[Name, StringConstraints(max_length=64)] | None = None
    """The job's name, and part of the model's."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] | None = None
    """The job's labels."""
    method: Method | Literal["sft", "cpt", "dpo"] | None = None
    """OpenAI's object, or a JobSpec's method."""
    hyperparameters: Hyperparameters | None = None
    integrations: list[Any] | None = None
    dataset: DatasetOptions | None = None


def to_spec(request: FineTuningRequest) -> JobSpec:
    """InvalidSpec with everything that is wrong, or not available, in OpenAI's names."""
    given = request.model_dump(mode="json", exclude_unset=True)
    hyperparameters, details = read_hyperparameters(given)
    details += [*check_integrations(given), *check_twice(given, hyperparameters), *check_source(given)]
    if details:
        raise InvalidSpec.of(details)
    spec = {name: value for name, value in given.items() if name in JobSpec.model_fields}
    method = given.get("method")
    files = {"file": given.get("training_file"), "validation_file": given.get("validation_file")}
    theirs = {
        "base_model": given["model"],
        "method": METHODS[method["type"]] if isinstance(method, dict) else method or "sft",
        "dataset": {name: file for name, file in files.items() if file is not None},
        "training": settle(hyperparameters) | ({"seed": given["seed"]} if given.get("seed") is not None else {}),
        "name": given.get("suffix") or given.get("name"),
        "labels": given.get("metadata") or given.get("labels") or {},
        "preference": {"beta": hyperparameters["beta"]} if "beta" in hyperparameters else {},
    }
    spec = {name: value for name, value in spec.items() if value is not None or name not in theirs}
    try:
        return JobSpec.model_validate(merged(spec, theirs))
    except ValidationError as problem:
        raise InvalidSpec.of([describe(error) for error in problem.errors()]) from problem


def read_hyperparameters(given: dict[str, Any]) -> tuple[dict[str, Any], list[Detail]]:
    """Those that are not left to us, and what is wrong with the method."""
    method = given.get("method")
    beside = without_auto(given.get("hyperparameters"))
    if not isinstance(method, dict):
        return beside, []
    kind = method["type"]
    if kind not in METHODS:
        message = f"method.type: {kind} fine-tuning is not available in this version; use {' or '.join(METHODS)}."
        return {}, [Detail("method.type", message, "not_available", {"method": {"type": "supervised"}})]
    others = [name for name in ("supervised", "dpo", "reinforcement") if name != kind and method.get(name) is not None]
    details = [Detail(f"method.{name}", f"method.{name}: the method's type is {kind}.") for name in others]
    inside = without_auto((method.get(kind) or {}).get("hyperparameters"))
    for name in sorted(beside.keys() & inside.keys()):
        param = f"hyperparameters.{name}"
        details.append(Detail(param, f"{param}: it is given in method.{kind}.hyperparameters too; leave it out here."))
    return beside | inside, details


def without_auto(hyperparameters: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (hyperparameters or {}).items() if value not in (None, "auto")}


def check_integrations(given: dict[str, Any]) -> list[Detail]:
    if not given.get("integrations"):
        return []
    message = "integrations: they are not available in this version; leave them out."
    return [Detail("integrations", message, "not_available", {"integrations": None})]


def check_twice(given: dict[str, Any], hyperparameters: dict[str, Any]) -> list[Detail]:
    """What is said in OpenAI's form and in ours."""
    said = hyperparameters.keys() | {name for name, value in given.items() if value is not None}
    return [
        Detail(param, f"{param}: {name} says this already; give one of them.")
        for name, params in SAME_AS.items()
        for param in params
        if name in said and look_up(given, param) is not None
    ]


def look_up(given: dict[str, Any], param: str) -> Any:
    parent, _, name = param.rpartition(".")
    return ((given.get(parent) or {}) if parent else given).get(name)


def check_source(given: dict[str, Any]) -> list[Detail]:
    dataset = given.get("dataset") or {}
    sources = [given.get("training_file") or dataset.get("file"), dataset.get("hub")]
    if sum(source is not None for source in sources) == 1:
        return []
    return [Detail("training_file", "training_file: give the id of an uploaded file, or dataset.hub, and not both.")]


def settle(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Fields of a JobSpec's `training`. Rows are not packed where their number in a step is given: then each is an
    example of its own."""
    training: dict[str, Any] = {}
    if "n_epochs" in hyperparameters:
        training["epochs"] = float(hyperparameters["n_epochs"])
    if "batch_size" in hyperparameters:
        size = hyperparameters["batch_size"]
        at_once = DEFAULTS.batch_size if size % DEFAULTS.batch_size == 0 else 1
        training |= {"batch_size": at_once, "gradient_accumulation": size // at_once, "packing": False}
    if "learning_rate_multiplier" in hyperparameters:
        training["learning_rate"] = DEFAULTS.learning_rate * hyperparameters["learning_rate_multiplier"]
    return training


def describe(error: Any) -> Detail:
    param = ".".join(str(step) for step in error["loc"])
    return Detail(param, f"{param}: {error['msg'].removeprefix('Value error, ')}.")


def in_their_names(error: InvalidSpec) -> InvalidSpec:
    """The refusal of a JobSpec, about the fields that its sender knows."""
    details = [detail | rename(detail["param"], detail["message"]) for detail in error.details or []]
    first = rename(error.param, error.message)
    return InvalidSpec(first["message"], param=first["param"], code=error.code, details=details or None)


def rename(param: str | None, message: str) -> dict[str, Any]:
    known = PARAMS.get(param or "", param)
    return {"param": known, "message": message.replace(f"{param}:", f"{known}:", 1) if known != param else message}
